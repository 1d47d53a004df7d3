"""What a node can check by itself before a run: CPUs, GPUs, data, checkpoint folder, code."""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch

from helm_megatron.kernels.dispatch import missing_for_triton

ROOT = Path(__file__).parents[2]
INDEX_HEADER = b"MMIDIDX\x00\x00"  # of Megatron's .idx files
VERSIONS = ("torch", "megatron-core")


def run_paths(flags: Sequence[str]) -> argparse.Namespace:
    """Of Megatron's flags those that name files: data, tokenizer, checkpoint folder."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("data", "train-data", "valid-data", "test-data"):
        parser.add_argument(f"--{flag}-path", nargs="*", default=[])
    parser.add_argument("--data-args-path")
    parser.add_argument("--per-split-data-args-path")
    parser.add_argument("--tokenizer-type")
    parser.add_argument("--tokenizer-model")
    parser.add_argument("--save")
    return parser.parse_known_args(list(flags))[0]


def is_number(text: str) -> bool:
    """Whether an item of --data-path is a weight."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def local_problems(flags: Sequence[str], gpus_per_node: int, processes: int = 1) -> list[str]:
    """What would stop a run with these flags of Megatron on this node, a problem an item.

    `processes` is the number of its ranks.
    """
    paths = run_paths(flags)
    prefixes = (
        paths.data_path + paths.train_data_path + paths.valid_data_path + paths.test_data_path
    )
    problems = [cpu_problem(processes), gpu_problem(gpus_per_node), triton_problem(gpus_per_node)]
    problems += [data_problem(prefix) for prefix in prefixes if not is_number(prefix)]
    files = [paths.data_args_path, paths.per_split_data_args_path]
    model = paths.tokenizer_model
    # A Hugging Face tokenizer may be the name of one.
    if model and (paths.tokenizer_type != "HuggingFaceTokenizer" or model.startswith(("/", "."))):
        files.append(model)
    problems += [readable_problem(Path(path)) for path in files if path]
    if paths.save:
        problems.append(save_problem(Path(paths.save)))
    return [problem for problem in problems if problem]


def cpu_problem(processes: int) -> str | None:
    """Why the ranks of this node would wait for each other's turn on a CPU, or None."""
    found = len(os.sched_getaffinity(0))
    if found >= processes:
        return None
    return (
        f"{found} CPUs for {processes} ranks: SLURM gives a task one unless the job asks for more; "
        f"pass sbatch --cpus-per-task {processes} at least, or --cpus-per-gpu"
    )


def triton_problem(gpus_per_node: int) -> str | None:
    """Why a GPU would take other kernels than Triton's, or None.

    Those are slower, and not what other nodes compute.
    """
    missing = missing_for_triton() if gpus_per_node else []
    return f"Triton kernels need {' and '.join(missing)}: install them" if missing else None


def gpu_problem(wanted: int) -> str | None:
    """Why there are fewer working GPUs than wanted, or None."""
    if wanted == 0:
        return None
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < wanted:
        return f"{found} GPUs, but the job needs {wanted}"
    try:
        for index in range(wanted):
            torch.ones(1, device=f"cuda:{index}").item()
    except RuntimeError as error:
        return f"GPU {index} does not work: {str(error).splitlines()[0]}"
    return None


def data_problem(prefix: str) -> str | None:
    """Why the .bin/.idx files of a prefix cannot be read, or None."""
    if "://" in prefix:
        return None  # an object store: Megatron's own
    index = Path(prefix + ".idx")
    if problem := readable_problem(index) or readable_problem(Path(prefix + ".bin")):
        return problem
    with index.open("rb") as file:
        if file.read(len(INDEX_HEADER)) != INDEX_HEADER:
            return f"{index} is no index of a Megatron dataset"
    return None


def readable_problem(path: Path) -> str | None:
    """Why a file or folder cannot be read; names the topmost folder that is missing."""
    if not path.exists():
        missing = path
        while not missing.parent.exists():
            missing = missing.parent
        return f"{missing} does not exist" + (f", needed for {path}" if missing != path else "")
    return None if os.access(path, os.R_OK) else f"{path} cannot be read"


def save_problem(folder: Path) -> str | None:
    """Why no checkpoint can be written to a folder, or None. Makes the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".preflight-") as file:
            file.write(b"0")
    except OSError as error:
        return f"checkpoint folder {folder} cannot be written: {error.strerror}"
    return None


def code_version() -> dict[str, str]:
    """This node's code: a hash of the sources, the commit for people, and library versions.

    The hash tells apart edits that no commit has, and works where an image has no git folder.
    """
    digest = hashlib.sha256()
    for path in sorted(ROOT.glob("helm_megatron/**/*.py")) + [ROOT / "pretrain_helm.py"]:
        if path.is_file():
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    versions = {name: metadata.version(name) for name in VERSIONS}
    return {"hash": digest.hexdigest()[:12], "commit": commit(), **versions}


def commit() -> str:
    """The commit that is checked out, or "none"."""
    command = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout[:12]
    except (OSError, subprocess.CalledProcessError):
        return "none"


def code_problems(names: Sequence[str], codes: Sequence[dict[str, str]]) -> list[str]:
    """The nodes whose code differs from what most have (of equals, from the first's)."""
    counts = Counter(tuple(sorted(code.items())) for code in codes)
    usual = dict(counts.most_common(1)[0][0]) if counts else {}
    problems = []
    for name, code in zip(names, codes, strict=True):
        differ = [key for key in usual if code[key] != usual[key]]
        if differ:
            what = ", ".join(f"{key} {code[key]} instead of {usual[key]}" for key in differ)
            problems.append(f"{name}: other code than the other nodes: {what}")
    return problems
