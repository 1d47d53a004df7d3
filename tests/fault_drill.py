"""Kills, full disks and signals for every tool, and what each leaves behind; run by hand.

    python tests/fault_drill.py --kills 20

A killed tool is run again in the same folder: afterwards there must be what one undisturbed run
makes, and nothing else. Of a full disk and of a signal nothing may be left at once. Linux only.
"""

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402

STUDY = [
    sys.executable,
    ROOT / "tests/study/study_of_fakes.py",
    ROOT / "tests/study/fake_training.py",
    ROOT / "tests/study/fake_evaluation.py",
]


@dataclass
class Tool:
    """A command that writes into a folder `out`; `sizes` are those of disks too small for it."""

    name: str
    words: list
    sizes: tuple[int, ...] = ()


def make(folder: Path) -> list[Tool]:
    """The tools, with what they read: a text, a tokenizer, a small HELM-MiCE in both formats."""
    from helm_megatron import megatron_patches

    megatron_patches.apply()
    from helm_megatron.conversion.to_megatron import convert_folder
    from helm_megatron.data.tokenizer_training import train_tokenizer
    from tests.evaluation.models import exported
    from tests.study.test_study import STUDY as TOML

    text, hf, megatron = folder / "text.txt", folder / "hf", folder / "megatron"
    text.write_text((ROOT / "README.md").read_text() * 100)
    train_tokenizer([text], folder / "words", 400)
    exported(hf)
    convert_folder(hf, megatron, verify=False)
    (folder / "study.toml").write_text(TOML)
    ours = [sys.executable, "-m", "helm_megatron.cli"]
    words = [
        "--tokenizer-type",
        "SentencePieceTokenizer",
        "--tokenizer-model",
        folder / "words.model",
    ]
    loads = ["--load", megatron, "--output-dir", "out"]
    return [
        Tool(
            "preprocess",
            [*ours, "preprocess", "--input", text, *words, "--output-prefix", "out/a", "--resume"],
            (20_000, 200_000),
        ),
        Tool(
            "train-tokenizer",
            [*ours, "train-tokenizer", "--input", text, "--output-prefix", "out/t"]
            + ["--vocab-size", "400"],
            (1000, 4000),
        ),
        Tool(
            "convert to hf",
            [*ours, "convert", *"--from megatron --to hf --save out/hf --load".split(), megatron]
            + ["--tokenizer-model", hf],
            (4000, 20_000),
        ),
        Tool(
            "convert to megatron",
            [*ours, "convert", *"--from hf --to megatron --save out/megatron --load".split(), hf],
            (4000, 20_000),
        ),
        Tool("analyze", [*ours, "analyze", "--load", hf, "--output-dir", "out"], (1000, 20_000)),
        Tool(
            "evaluate",
            [*ours, "evaluate", *loads, "--tokenizer-model", hf, "--overwrite", "--limit", "2"]
            + "--tasks wordnet_hypernymy --device cpu".split(),
            (1000, 20_000),
        ),
        Tool("study", [*STUDY, folder / "study.toml", "--output-dir", "out", "--at-once", "2"]),
    ]


def start(tool: Tool, folder: Path, size: int | None = None) -> subprocess.Popen:
    """The tool in a session of its own, so that its processes can be told."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env |= {
        "FAKE_STARTS": str(folder / "starts"),
        "FAKE_SECONDS": "0.2",
        "TMPDIR": str(folder / "tmp"),
    }
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    (folder / "out").mkdir(exist_ok=True)
    limit = size and partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
    return subprocess.Popen(
        [*map(str, tool.words)],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=(folder / "said").open("w") if size is None else subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=limit,
    )


def session(run: subprocess.Popen) -> list[psutil.Process]:
    """The processes of a run that live."""
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getsid(process.pid) == run.pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def left_processes(run: subprocess.Popen, seconds: float = 20) -> int:
    """How many of a run that has ended live on; they are ended then."""
    end = time.monotonic() + seconds
    while (left := session(run)) and time.monotonic() < end:
        time.sleep(0.1)
    for process in left:
        process.kill()
    return len(left)


def names(folder: Path) -> set[str]:
    """What lies in the tool's folder."""
    return {str(path.relative_to(folder)) for path in (folder / "out").rglob("*")}


def clear(tool: Tool, folder: Path) -> None:
    """Remove what a run has finished; what lies hidden or half-written stays."""
    for path in (folder / "out").iterdir():
        if not path.name.startswith(".") and not path.name.endswith(".partial"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def undisturbed(tool: Tool, folder: Path) -> tuple[float, set[str]]:
    began = time.monotonic()
    code = start(tool, folder).wait()
    assert code == 0, (tool.name, (folder / "said").read_text()[-2000:])
    return time.monotonic() - began, names(folder)


def kills(tool: Tool, folder: Path, count: int, chance: random.Random) -> Counter:
    """kill -9 at moments of the whole run, then a run that must come to the end."""
    seconds, wanted = undisturbed(tool, folder / "whole")
    found, folder = Counter(), folder / "killed"
    while found["kills"] < count:
        run = start(tool, folder)
        try:
            run.wait(chance.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()
            found["kills"] += 1
        found["processes"] += left_processes(run)
        clear(tool, folder)
    _, there = undisturbed(tool, folder)  # a lock that stayed would refuse it
    found["files"] += len(there ^ wanted)
    temporary = [path.name for path in (folder / "tmp").iterdir()]
    found["temporary"] += sum("wandb" not in name for name in temporary)
    # Empty ones, which W&B makes when Megatron imports it, and removes at the end.
    found["temporary of W&B"] += sum("wandb" in name for name in temporary)
    return found


def full_disks(tool: Tool, folder: Path) -> Counter:
    """Each must end in one line, and leave nothing but what --resume goes on with."""
    found = Counter()
    for size in tool.sizes:
        run = start(tool, folder / str(size), size)
        _, said = run.communicate()
        lines = [line for line in said.splitlines() if "error: " in line]
        found["full disks"] += 1
        found["not one line"] += (
            run.returncode in (0, None) or len(lines) != 1 or "Traceback" in said
        )
        left = [n for n in names(folder / str(size)) if "log" not in n and ".partial" not in n]
        found["files"] += len(left)
        found["processes"] += left_processes(run)
        print(f"  disk of {size}: {lines or said[-300:]} {left or ''}", flush=True)
    return found


def signals(tool: Tool, folder: Path) -> Counter:
    """Each ends the tool when it has begun to write, and leaves nothing."""
    found = Counter()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        here = folder / number.name
        run = start(tool, here)
        while not names(here) and run.poll() is None:
            time.sleep(0.01)
        time.sleep(1)
        begun = names(here)
        run.send_signal(number)
        found["signals"] += 1
        found["exit code 0"] += run.wait() == 0
        found["processes"] += left_processes(run)
        left = [name for name in names(here) if not name.endswith(".log")]
        found["files"] += len(left)
        print(
            f"  {number.name}: exit code {run.returncode}, had {len(begun)}, left {left}",
            flush=True,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="of each tool")
    parser.add_argument("--only", help="tools whose names have this")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    chance, total = random.Random(args.seed), Counter()
    with tempfile.TemporaryDirectory() as made:
        for tool in make(Path(made)):
            if args.only and args.only not in tool.name:
                continue
            print(tool.name, flush=True)
            found = full_disks(tool, Path(made, "disk", tool.name))
            if tool.name in ("convert to hf", "evaluate"):
                found += signals(tool, Path(made, "signal", tool.name))
            found += kills(tool, Path(made, "kill", tool.name), args.kills, chance)
            print(f"  {dict(found)}", flush=True)
            total += found
    print(f"all: {dict(total)}")


if __name__ == "__main__":
    main()
