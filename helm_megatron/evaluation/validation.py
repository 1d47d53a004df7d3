"""The validation loss of a checkpoint, by the training program's own evaluation."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from helm_megatron.child_processes import ends_with_this
from helm_megatron.conversion.text import tokenizer_type_of
from helm_megatron.data.output import own_folder
from helm_megatron.evaluation.errors import EvaluationError
from helm_megatron.evaluation.model import read_json

PROGRAM = ("-m", "helm_megatron.cli", "pretrain")
_LOSS = re.compile(r"on validation set \| lm loss value: (\S+) \| lm loss PPL: (\S+)")
_BITS = re.compile(r"validation bits per byte at .* on validation set \| (\S+)")


@dataclass(frozen=True)
class Validation:
    """What to read, by Megatron's words.

    Attributes:
        data_path: of `--data-path`.
        split: of `--split`; "0,1,0" takes all of the data.
        seed: of the training, as it shuffles the documents before they are cut into samples.
        batch_size: samples at once.
    """

    data_path: Sequence[str]
    split: str
    seed: int
    batch_size: int


def validate(
    load: Path, what: Validation, log: Path, step: int | None, tokenizer: str | None
) -> dict[str, float]:
    """Loss, perplexity and, where the tokenizer tells bytes, bits per byte of the whole set.

    Args:
        load: a checkpoint of pretrain_helm.py or a Hugging Face folder.
        log: everything that the programs say goes into this file.
        step: iteration of the checkpoint, the latest if None.
        tokenizer: replaces the path in the checkpoint's arguments.

    Raises:
        EvaluationError: the last line of what went wrong.
    """
    with log.open("w", encoding="utf-8") as said, _megatrons(load, said) as checkpoint:
        flags: list[Any] = ["--load", checkpoint, "--use-checkpoint-args", "--skip-train"]
        flags += ["--no-load-optim", "--no-load-rng", "--full-validation", "--seed", what.seed]
        flags += ["--data-path", *what.data_path, "--split", what.split]
        flags += ["--train-iters", 1, "--lr", 1]
        flags += ["--micro-batch-size", what.batch_size, "--global-batch-size", what.batch_size]
        flags += ["--num-workers", 0]
        if checkpoint != load:  # a Hugging Face folder, which has its tokenizer
            model = load / "tokenizer.model"  # where no fast tokenizer gives its ids
            model = model if model.is_file() else load
            tokenizer = tokenizer or str(model)
            flags += ["--vocab-size", read_json(load / "config.json")["vocab_size"]]
        if tokenizer is not None:
            flags += ["--no-use-tokenizer-model-from-checkpoint-args"]
            flags += ["--tokenizer-model", tokenizer, "--tokenizer-type"]
            flags += [tokenizer_type_of(tokenizer)]
        flags += [] if step is None else ["--ckpt-step", step]
        _run([*PROGRAM, *map(str, flags)], said)
    text = log.read_text(encoding="utf-8", errors="replace")
    if (found := _LOSS.search(text)) is None:
        raise EvaluationError(f"--split {what.split} leaves no sample to validate on; see {log}")
    scores = {"loss": float(found[1]), "perplexity": float(found[2])}
    if not math.isfinite(scores["loss"]):
        raise EvaluationError(
            f"{load}: the loss is {found[1]}: its weights have NaN or Inf; take an older checkpoint"
        )
    if bits := _BITS.search(text):
        scores["bits per byte"] = float(bits[1])
    return scores


@contextmanager
def _megatrons(load: Path, said: IO[str]) -> Iterator[Path]:
    """A checkpoint for `--load`, converted for a while from a Hugging Face folder."""
    if not load.exists():
        raise EvaluationError(f"--load {load}: no such folder")
    if not (load / "config.json").is_file():
        yield load
        return
    with own_folder(Path(tempfile.gettempdir()), ".helm-validation-") as folder:
        words = ["-m", "helm_megatron.cli", "convert", "--from", "hf", "--to", "megatron"]
        _run([*words, "--load", str(load), "--save", f"{folder}/megatron"], said)
        yield folder / "megatron"


def _run(words: list[str], said: IO[str]) -> None:
    done = subprocess.run(
        [sys.executable, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=ends_with_this(),
    )
    print(done.stdout, file=said, flush=True)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines or ["it failed"]
        raise EvaluationError(re.sub(r"^.*?error(?: \(rank 0\))?: ", "", errors[-1]))


def table(load: Path, scores: dict[str, float]) -> str:
    """The scores as Markdown."""
    heads = " | ".join(scores)
    values = " | ".join(f"{value:.6f}" for value in scores.values())
    return f"| validation | {heads} |\n|---|{'--:|' * len(scores)}\n| {load} | {values} |\n"
