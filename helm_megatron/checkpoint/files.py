"""The checkpoint that a run is about to load: where it is, whether it is whole, reading it safely.

Megatron's torch_dist format has a pickled index, `.metadata`, beside the shards.
"""

from __future__ import annotations

import argparse
import io
import os
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from megatron.core.dist_checkpointing.core import check_is_distributed_checkpoint
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.training.checkpointing import (
    checkpoint_exists,
    get_checkpoint_name,
    get_checkpoint_tracker_filename,
)

from helm_megatron.errors import HelmError
from helm_megatron.megatron_patches import checkpoint_hashes
from helm_megatron.megatron_patches.checkpoint_index import load_index

# What Megatron calls the arguments, and all else that is not of a rank, in a shard.
COMMON_STATE = ShardedObject("common_state", None, (1,), (0,)).unique_key


class CheckpointError(HelmError):
    """A checkpoint that cannot be loaded; the message is one line that says which and why."""


def read_index(folder: Path) -> Any:
    """The index of a torch_dist checkpoint: what is stored, and where.

    Raises:
        CheckpointError: there is none, or it holds more than an index needs.
    """
    index = folder / ".metadata"
    try:
        with index.open("rb") as file:
            return load_index(file)
    except FileNotFoundError as error:
        raise CheckpointError(f"{index} is missing") from error
    except Exception as error:  # unpickling damaged data raises anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{index} cannot be read: {reason}") from error


def folder_to_load(args: argparse.Namespace) -> Path | None:
    """The folder that Megatron will load: the tracker's iteration, or --ckpt-step.

    None if it will load nothing, or if the checkpoint is not in a local folder.

    Raises:
        CheckpointError: the tracker file holds no iteration.
    """
    load = args.load
    if args.pretrained_checkpoint is not None and not checkpoint_exists(load):
        load = args.pretrained_checkpoint
    if load is None or not os.path.isdir(load):
        return None
    latest = read_tracker(Path(load))
    release = latest == "release" and not args.ckpt_step
    iteration = args.ckpt_step or (0 if release else latest)
    if iteration is None:
        return None
    return Path(get_checkpoint_name(load, int(iteration), release, return_base_dir=True))


def read_tracker(folder: Path) -> str | None:
    """What the tracker file of a folder of checkpoints names: an iteration, or "release".

    None if there is no such file.

    Raises:
        CheckpointError: it holds something else; Megatron would end without an error.
    """
    tracker = Path(get_checkpoint_tracker_filename(str(folder)))
    if not tracker.is_file():
        return None
    try:
        latest = tracker.read_bytes().decode("utf-8", "replace").strip()
    except OSError as error:
        raise CheckpointError(f"{tracker} cannot be read: {error.strerror}") from error
    if latest == "release" or (latest.isdecimal() and len(latest) < 16):
        return latest
    raise CheckpointError(
        f"{tracker} holds {latest[:40]!r}, not an iteration: write the one to load into it "
        f"({whole_iterations(folder)})"
    )


def check_whole(folder: Path, rank: int = 0, ranks: int = 1) -> None:
    """Refuse a checkpoint that is half-written, truncated or not readable, before it is loaded.

    Of Megatron's legacy format all files are read, for their checksums; each of `ranks` that call
    this reads a share of them.

    Raises:
        CheckpointError: naming the file, and the other iterations that are whole.
    """
    if reason := damage(folder) or _damaged_legacy(folder, rank, ranks):
        raise CheckpointError(f"{reason} ({whole_iterations(folder.parent, without=folder)})")


def check_hashes(folder: Path) -> None:
    """Refuse a torch_dist checkpoint with a file that is not what was written; reads all of it.

    One that has no integrity.json, as it was saved by an older version, passes.

    Raises:
        CheckpointError: naming the file, and the other iterations that are whole.
    """
    if reason := _not_as_written(folder):
        raise CheckpointError(f"{reason} ({whole_iterations(folder.parent, without=folder)})")


def _not_as_written(folder: Path, *names: str) -> str | None:
    """The first file, of all or of these, whose hash is not that of integrity.json; None if all."""
    manifest = folder / checkpoint_hashes.MANIFEST
    if not manifest.is_file():
        return None
    try:
        return checkpoint_hashes.damaged(folder, names or None)
    except (OSError, ValueError) as error:
        return f"{manifest} cannot be read: {error}"


def check_sums(file: Path | io.BytesIO, name: str) -> None:
    """Refuse what torch.save wrote if a checksum of its zip format is not that of its contents.

    torch does not look at them. Takes files of other formats (of old versions of torch) for whole.

    Raises:
        CheckpointError: naming the file as `name`.
    """
    try:
        if not zipfile.is_zipfile(file):
            return
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except Exception as error:  # damaged directories raise anything
        raise CheckpointError(f"{name} is damaged: {error}") from error
    if bad is not None:
        raise CheckpointError(f"{name} is damaged: {bad} in it has another checksum")


def check_common_state(folder: Path) -> None:
    """Refuse a torch_dist checkpoint whose arguments are not what was written.

    They are few bytes, so this is always done. Megatron keeps them in a shard; its older versions
    did in a file of their own.

    Raises:
        CheckpointError: naming the file.
    """
    alone = folder / COMMON_STATE_FNAME
    if alone.is_file():
        check_sums(alone, str(alone))
        return
    for entry in _places(folder, COMMON_STATE):
        shard = folder / entry.relative_path
        try:
            with shard.open("rb") as file:
                file.seek(entry.offset)
                data = file.read(entry.length)
        except OSError as error:
            raise CheckpointError(f"{shard} cannot be read: {error.strerror}") from error
        check_sums(io.BytesIO(data), f"{shard}: the run's arguments")


def _places(folder: Path, name: str) -> list[Any]:
    """Where a torch_dist checkpoint has what is called so."""
    places = read_index(folder).storage_data.items()
    return [entry for place, entry in places if place.fqn == name]


def whole_iterations(load: str | Path, without: Path | None = None) -> str:
    """How to load another checkpoint of the folder, in words."""
    folders = [f for f in sorted(Path(load).glob("iter_*")) if f != without and damage(f) is None]
    if not folders:
        return "no other checkpoint there is whole"
    steps = [str(int(folder.name.removeprefix("iter_"))) for folder in folders]
    return f"whole ones: {', '.join(steps)}; --ckpt-step {steps[-1]} loads the last of them"


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint; None if it is whole.

    Knows torch_dist checkpoints by their index; takes Megatron's other formats for whole.
    """
    if not folder.is_dir():
        return f"{folder} is missing"
    if any(folder.glob("mp_rank_0*")):
        return None
    try:
        if not check_is_distributed_checkpoint(str(folder)):
            return f"{folder / 'metadata.json'} is missing: the checkpoint was not saved to the end"
    except Exception as error:  # Megatron takes what is there as it comes
        return f"{folder / 'metadata.json'} cannot be read: {error}"
    return _not_as_written(folder, checkpoint_hashes.INDEX) or _damaged_shard(folder)


def _damaged_legacy(folder: Path, rank: int, ranks: int) -> str | None:
    """The first file of the rank's share of `mp_rank_*` that is not what was written."""
    for file in sorted(folder.glob("mp_rank_*/*.pt"))[rank::ranks]:
        try:
            check_sums(file, str(file))
        except CheckpointError as error:
            return str(error)
    return None


def _damaged_shard(folder: Path) -> str | None:
    """What is wrong with the index, or with the size of a file that it lists."""
    ends: dict[str, int] = defaultdict(int)
    try:
        for entry in read_index(folder).storage_data.values():
            ends[entry.relative_path] = max(ends[entry.relative_path], entry.offset + entry.length)
    except CheckpointError as error:
        return str(error)
    except (AttributeError, TypeError) as error:
        return f"{folder / '.metadata'} cannot be read: {error}"
    for name, end in sorted(ends.items()):
        shard = folder / name
        if not shard.is_file():
            return f"{shard} is missing"
        if (size := shard.stat().st_size) < end:
            return f"{shard} is truncated: {size} bytes of {end}"
    return None
