"""Where a run starts: at a checkpoint, at other weights, or anew; told before anything is built.

Megatron starts from random weights wherever it finds no tracker file, and says so in one line of
many hundred; then its own tracker file replaces whatever another run has left.
"""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron.training.checkpointing import (
    get_checkpoint_name,
    get_checkpoint_tracker_filename,
)

from helm_megatron.checkpoint.files import damage, read_tracker, whole_iterations
from helm_megatron.checks import ArgumentError, flag_of

_ITERATION = re.compile(r"iter_(\d{7,})")


@dataclass(frozen=True)
class Start:
    """The folder of the checkpoint to load (None: there is none), the arguments that make Megatron
    load it, in place of those given, what to tell the user, and whether the checkpoint's run goes
    on, or another begins with its weights."""

    folder: Path | None = None
    settled: dict[str, Any] = field(default_factory=dict)
    says: str | None = None
    goes_on: bool = True


def find_start(args: argparse.Namespace) -> Start:
    """What Megatron's flags mean: --load, --ckpt-step, --pretrained-checkpoint, --finetune, --save.

    A run starts anew without --load, or where --load is --save and nothing is there yet.

    Raises:
        ArgumentError: the flags name no checkpoint, or another run's tracker would be overwritten.
        CheckpointError: a tracker file holds no iteration.
    """
    start = _find(args)
    _check_tracker(args, start)
    return start


def _find(args: argparse.Namespace) -> Start:
    step = args.ckpt_step
    if step is not None and step < 1:
        raise ArgumentError(f"--ckpt-step {step}: iterations of checkpoints count from 1")
    for name in ("load", "save", "pretrained_checkpoint"):
        if getattr(args, name) is not None and not getattr(args, name).strip():
            raise ArgumentError(f"{flag_of(name)}: an empty name of a folder")
    if any("://" in name for name in (args.load, args.pretrained_checkpoint) if name):
        return Start()
    found = _checkpoint("--load", args.load, step) if args.load is not None else None
    if found is not None:
        settled = found.settled | {"pretrained_checkpoint": None}  # it has come further already
        return Start(found.folder, settled, found.says, goes_on=not args.finetune)
    if args.load is not None and not _is_own(args):
        raise ArgumentError(f"--load {args.load}: {_nothing(args.load)}")
    if args.pretrained_checkpoint is not None:
        return _pretrained(args)
    for given, flag in ((args.finetune, "--finetune"), (step, f"--ckpt-step {step}")):
        if given:
            why = "--load is missing" if args.load is None else _nothing(args.load)
            raise ArgumentError(f"{flag}: there is nothing to load: {why}")
    if args.load is None:
        return Start()
    if args.exit_on_missing_checkpoint:
        raise ArgumentError(f"--exit-on-missing-checkpoint: {_nothing(args.load)}")
    if args.non_persistent_ckpt_type is not None:
        return Start()  # Megatron looks for one of those yet
    left = "; what is there was not saved to the end" if _iterations(args.load) else ""
    return Start(says=f"no checkpoint in {args.load} yet{left}: starting anew")


def _pretrained(args: argparse.Namespace) -> Start:
    """Other weights to start from."""
    name = args.pretrained_checkpoint
    found = _checkpoint("--pretrained-checkpoint", name, args.ckpt_step)
    if found is None:
        raise ArgumentError(f"--pretrained-checkpoint {name}: {_nothing(name)}")
    settled = dict(found.settled)
    if "load" in settled:
        settled["pretrained_checkpoint"] = settled.pop("load")
    first = f"no checkpoint in {args.load} yet" if args.load else "no --load"
    says = f"{first}: starting from the weights of {found.folder}"
    return Start(found.folder, settled, says, goes_on=False)


def _checkpoint(flag: str, name: str, step: int | None) -> Start | None:
    """What a folder of checkpoints, or a checkpoint's own folder, means; None: nothing to load."""
    folder = Path(name)
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(f"{flag} {name}: is a file; pass the folder of the checkpoints")
    tracker = read_tracker(folder)
    if tracker is None and _is_checkpoint(folder):
        return _of_iteration(flag, folder, step)
    if step is not None:
        if tracker is None and not _iterations(name):
            return None
        return Start(Path(get_checkpoint_name(name, step, return_base_dir=True)))
    if tracker is not None:
        iteration = 0 if tracker == "release" else int(tracker)
        release = tracker == "release"
        return Start(Path(get_checkpoint_name(name, iteration, release, return_base_dir=True)))
    whole = [folder for folder in _iterations(name) if damage(folder) is None]
    if not whole:
        return None
    says = f"{name} has no {Path(get_checkpoint_tracker_filename(name)).name}: its last whole"
    settled = {"ckpt_step": _iteration(whole[-1])}
    return Start(whole[-1], settled, f"{says} checkpoint is {whole[-1].name}")


def _of_iteration(flag: str, folder: Path, step: int | None) -> Start:
    """A checkpoint's own folder, which Megatron cannot take: the one above it, and its step."""
    own = folder.resolve()  # a link may name it
    above, tracker = str(own.parent), read_tracker(own.parent)
    if own.name == "release" and tracker == "release" and step is None:
        return Start(own, {"load": above})
    iteration = _iteration(own)
    if iteration is None or own.name != f"iter_{iteration:07d}":
        raise ArgumentError(
            f"{flag} {folder}: is a checkpoint itself; Megatron loads from the folder above, by the"
            f" name iter_NNNNNNN: move it to one, as CHECKPOINTS/iter_0000001, and pass"
            f" {flag} CHECKPOINTS --ckpt-step 1"
        )
    if step not in (None, iteration):
        raise ArgumentError(f"--ckpt-step {step}: {flag} {folder} is another iteration")
    return Start(own, {"load": above, "ckpt_step": iteration})


def _check_tracker(args: argparse.Namespace, start: Start) -> None:
    """Refuse to save over another run's tracker file, which would hide all that it has saved.

    To go back within a run, by --ckpt-step or an iteration's folder, is no other run.
    """
    if args.save is None or "://" in args.save or args.skip_train:
        return
    tracker = read_tracker(Path(args.save))
    own = start.folder is not None and _same(start.folder.parent, args.save)
    if tracker is None or (own and (tracker == "release" or start.goes_on)):
        return
    raise ArgumentError(
        f"--save {args.save}: has checkpoints already, the last {tracker}, and this run does not go"
        f" on from them; pass another folder, or --load {args.save} to go on"
    )


def _is_own(args: argparse.Namespace) -> bool:
    """Whether a run loads where it saves; only there a checkpoint may not be there yet."""
    return args.save is not None and _same(args.load, args.save)


def _same(first: str | Path, second: str | Path) -> bool:
    return os.path.realpath(first) == os.path.realpath(second)


def _is_checkpoint(folder: Path) -> bool:
    name = folder.resolve().name
    is_named = folder.is_dir() and (name == "release" or _ITERATION.fullmatch(name) is not None)
    return is_named or any((folder / name).is_file() for name in (".metadata", "metadata.json"))


def _iteration(folder: Path) -> int | None:
    """The number in the name of an iteration's folder."""
    found = _ITERATION.fullmatch(folder.name)
    return int(found[1]) if found else None


def _iterations(name: str) -> list[Path]:
    """The folders of iterations, the last one last, whole or not."""
    found = [(_iteration(path), path) for path in Path(name).glob("iter_*") if path.is_dir()]
    return [path for _, path in sorted((number, path) for number, path in found if number)]


def _nothing(name: str) -> str:
    """Why there is nothing to load, and what to do."""
    anew = "to start anew pass the same new folder to --load and --save"
    if not Path(name).is_dir():
        return f"there is no such folder; {anew}"
    if (Path(name) / "config.json").is_file():
        return "is a folder of Hugging Face's; tools/checkpoint/convert.py makes a checkpoint of it"
    if _iterations(name):
        return f"holds no whole checkpoint ({whole_iterations(name)}); {anew}"
    if (Path(name) / "release").is_dir():
        tracker = Path(get_checkpoint_tracker_filename(name)).name
        return f"has a release, but no file {tracker} that says so: write 'release' into it"
    return f"holds no checkpoint; {anew}"
