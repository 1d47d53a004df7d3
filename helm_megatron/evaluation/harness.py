"""Stock lm-eval, run as its users run it."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from helm_megatron.child_processes import ends_with_this
from helm_megatron.data.output import own_folder
from helm_megatron.evaluation.errors import EvaluationError
from helm_megatron.evaluation.presets import TASKS, is_offline

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
# A bar of tqdm's without the bar itself, and the last line of a traceback.
PROGRESS = re.compile(r"(Running [\w ]+ requests: +(\d+)%)\|.*?(\| [^]]*\])")
RAISED = re.compile(r"^(?:\w+\.)*\w+(?:Error|Exception|NotFound): (.+)")


@dataclass(frozen=True)
class Options:
    """What lm-eval is asked for; None leaves a choice to lm-eval.

    Attributes:
        tasks: lm-eval's names of tasks and groups.
        limit: evaluate the first so many questions of every task.
        num_fewshot: for all tasks, whatever their own number.
        as_released: score as the authors' released evaluation does (`as_released.AsReleased`).
        trust_remote_code: run the code that is in the folder, by stock lm-eval, not this project's.
    """

    tasks: list[str]
    batch_size: str = "8"
    device: str | None = None
    dtype: str = "auto"
    limit: int | None = None
    num_fewshot: int | None = None
    log_samples: bool = False
    as_released: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Outcome:
    """What lm-eval wrote.

    Attributes:
        results: its file of results.
        samples: the text of its sample files by task, if they were asked for.
        truncated: whether prompts were longer than the model's context.
    """

    results: dict[str, Any]
    samples: dict[str, str]
    truncated: bool


def command(model: Path, options: Options, output: Path, unigram: Path | None = None) -> list[str]:
    """Return the lm-eval command for a Hugging Face folder, without the interpreter.

    With a file of `unigram.write_counts`, the command for the unigram model of these counts, which
    takes the folder's tokenizer.
    """
    # As JSON, which takes any path; key=value,... would split one with a comma.
    model_args: dict[str, Any] = {"pretrained": str(model), "dtype": options.dtype}
    words = ["helm_megatron.evaluation.own_model", "run", "--model", "helm"]
    if options.trust_remote_code:
        model_args["trust_remote_code"] = True
        words = ["lm_eval", "run", "--model", "hf"]
    if options.as_released:
        words = ["helm_megatron.evaluation.as_released", "run", "--model", "helm-as-released"]
    if unigram is not None:
        model_args = {"tokenizer": str(model), "counts": str(unigram)}
        words = ["helm_megatron.evaluation.unigram", "run", "--model", "unigram"]
    words += ["--model_args", json.dumps(model_args)]
    words += ["--tasks", ",".join(options.tasks), "--batch_size", options.batch_size]
    words += ["--include_path", str(TASKS), "--output_path", str(output)]
    for flag, value in (
        ("--device", options.device),
        ("--limit", options.limit),
        ("--num_fewshot", options.num_fewshot),
    ):
        if value is not None:
            words += [flag, str(value)]
    return words + ["--log_samples"] * options.log_samples


def run(model: Path, options: Options, log: Path, unigram: Path | None = None) -> Outcome:
    """Evaluate what `command` names; everything lm-eval says goes into `log`.

    Raises:
        EvaluationError: lm-eval is not installed, or fails.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise EvaluationError("lm-eval is not installed: pip install 'helm-megatron[eval]'")
    environment = os.environ | (OFFLINE if is_offline(options.tasks) else {})
    with own_folder(Path(tempfile.gettempdir()), ".helm-evaluate-") as output:
        words = [sys.executable, "-m", *command(model, options, output, unigram)]
        with (
            log.open("w", encoding="utf-8") as lines,
            subprocess.Popen(
                words,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                preexec_fn=ends_with_this(),
            ) as process,
        ):
            assert process.stdout is not None
            follow(process.stdout, lines)
        if process.returncode:
            name = "lm-eval" if unigram is None else "--unigram-data"
            raise EvaluationError(f"{name}: {reason(log)}; all that lm-eval said is in {log}")
        return collect(output, log)


def follow(source: IO[str], log: IO[str]) -> None:
    """Copy a process's output to a log, and its progress bars to the terminal."""
    tenth = -1
    # Universal newlines: what tqdm ends with a carriage return is a line too.
    for line in source:
        log.write(line)
        if bar := PROGRESS.match(line):
            percent = int(bar[2])
            if sys.stderr.isatty():
                end = "\n" if percent == 100 else ""
                print(f"\r{bar[1]} {bar[3]} ", end=end, file=sys.stderr, flush=True)
            elif percent // 10 != tenth:
                print(bar[1], bar[3], file=sys.stderr, flush=True)
            tenth = percent // 10


def reason(log: Path) -> str:
    """Return the last error in a log, in one line."""
    lines = log.read_text(encoding="utf-8").splitlines()
    raised = [match[1] for line in lines if (match := RAISED.match(line))]
    if missing := [text for text in raised if text.startswith("Tasks not found: ")]:
        return f"{missing[-1]}; `lm_eval ls tasks` lists them, as does {TASKS}"
    return (raised or [line for line in lines if line.strip()] or ["failed"])[-1]


def collect(output: Path, log: Path) -> Outcome:
    """Read the files that lm-eval wrote below a folder, and its log."""
    found = list(output.rglob("results_*.json"))
    if len(found) != 1:
        raise EvaluationError(f"lm-eval wrote {len(found)} files of results, not one")
    samples = {}
    for path in output.rglob("samples_*.jsonl"):
        # samples_TASK_2026-01-31T12-00-00.000000.jsonl
        task = path.stem.removeprefix("samples_").rpartition("_")[0]
        samples[task] = path.read_text(encoding="utf-8")
    return Outcome(
        results=json.loads(found[0].read_text(encoding="utf-8")),
        samples=samples,
        truncated="exceeds model's maximum length" in log.read_text(encoding="utf-8"),
    )
