"""Files and folders that flags name: tried before anything is trained."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from helm_megatron.checks.refusals import ArgumentError, flag_of, megatrons_flags

# Folders that a run makes and writes, and files that it writes, by attribute.
_WRITTEN_FOLDERS = """
    tensorboard_dir wandb_save_dir data_cache_path non_persistent_global_ckpt_dir
    non_persistent_local_ckpt_dir ckpt_convert_save object_storage_cache_path
    """.split()
_WRITTEN_FILES = """
    memory_snapshot_path flight_recorder_dump_path dump_param_to_param_group_map
    moe_routing_trace_path
    """.split()
_READ = """
    vocab_file merge_file tokenizer_metadata data_args_path per_split_data_args_path
    per_dataset_sequences_path te_precision_config_file nccl_communicator_config_path
    tp_comm_overlap_cfg
    """.split()


def check_paths(args: argparse.Namespace) -> None:
    """Refuse what cannot be read or written; makes the folders that a run would make, but --save.

    Raises:
        ArgumentError: for the first such path, with its flag.
    """
    for name in _READ:
        if path := getattr(args, name, None):
            _check_readable(flag_of(name), Path(path))
    for name in _WRITTEN_FOLDERS:
        if path := getattr(args, name, None):
            _check_writable(f"{flag_of(name)} {path}", Path(path))
    for name in _WRITTEN_FILES:
        path = getattr(args, name, None)
        if path and path != megatrons_flags()[name].default:
            if Path(path).is_dir():
                raise ArgumentError(f"{flag_of(name)} {path}: is a folder; name a file")
            _check_writable(f"{flag_of(name)} {path}", Path(path).parent)


def check_save(args: argparse.Namespace) -> None:
    """Refuse a --save folder that cannot be made or written, before it costs any training.

    Raises:
        ArgumentError: it cannot.
    """
    if args.save:
        _check_writable(f"--save {args.save}", Path(args.save))


def _check_readable(flag: str, path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ArgumentError(f"{flag} {path}: cannot be read: {error.strerror}") from error


def _check_writable(what: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"{what}: cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ArgumentError(f"{what}: cannot be written")
