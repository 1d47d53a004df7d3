"""Joining datasets into one, in bounded memory."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from helm_megatron import __version__
from helm_megatron.data.errors import DataError
from helm_megatron.data.indexed import CHUNK, Index, paths_of, write_index
from helm_megatron.data.output import staged
from helm_megatron.data.sidecar import describe_file, read_sidecar, sidecar_path, write_sidecar
from helm_megatron.data.verification import open_whole


def find_prefixes(inputs: Sequence[str]) -> list[str]:
    """Return prefixes of datasets: those given, and all in folders that are, sorted by name.

    What is both, as a dataset beside which Megatron has made the folder of its index cache, is the
    dataset, unless its name ends with a slash.

    Raises:
        DataError: a folder has no dataset, or a name is empty.
    """
    prefixes: list[str] = []
    for name in inputs:
        if not name:
            raise DataError("--input: an empty name")
        prefix = name.rstrip("/")
        if not Path(name).is_dir() or (name == prefix and paths_of(prefix)[1].is_file()):
            prefixes.append(name)
            continue
        found = sorted(p for p in Path(name).glob("*.idx") if not p.name.startswith("."))
        if not found:
            hint = f"; {prefix}.idx is a dataset: pass {prefix}" * paths_of(prefix)[1].is_file()
            raise DataError(f"{name}: no .idx file in this folder{hint}")
        prefixes += [str(path.with_suffix("")) for path in found]
    return prefixes


def merge(prefixes: Sequence[str], output_prefix: Path, *, overwrite: bool = False) -> int:
    """Write the documents of several datasets, in order, as one; return how many.

    Where all have sidecars of one tokenizer, the result has one too.

    Raises:
        DataError: a dataset is missing or damaged, their tokenizers or types of token differ, some
            have a sidecar and some have none, or the output exists or cannot be written.
    """
    indices = [open_whole(prefix) for prefix in prefixes]
    for index in indices[1:]:
        _check_type(index, indices[0])
    sidecar = _common_sidecar(prefixes)
    data, index_path = paths_of(output_prefix)
    targets = [data, *([sidecar_path(output_prefix)] if sidecar else []), index_path]
    with staged(targets, overwrite) as paths:
        with paths[0].open("wb") as joined:
            for prefix in prefixes:
                with paths_of(prefix)[0].open("rb") as part:
                    shutil.copyfileobj(part, joined, 1 << 22)
        with paths[-1].open("wb") as stream:
            write_index(
                stream, indices[0].dtype, lambda: _lengths(indices), lambda: _bounds(indices)
            )
        if sidecar:
            sidecar["files"] = {"bin": describe_file(paths[0]), "idx": describe_file(paths[-1])}
            write_sidecar(paths[1], sidecar)
    if not sidecar:
        sidecar_path(output_prefix).unlink(missing_ok=True)  # of what was replaced
    return sum(index.documents for index in indices)


def _check_type(index: Index, first: Index) -> None:
    if index.dtype != first.dtype:
        raise DataError(
            f"{index.path}: holds {index.dtype}, but {first.path} holds {first.dtype}; only data of"
            " one vocabulary can be joined"
        )


def _common_sidecar(prefixes: Sequence[str]) -> dict[str, Any] | None:
    """Return the sidecar of the joined dataset but for its files; None if no part has one."""
    sidecars = {prefix: read_sidecar(prefix) for prefix in prefixes}
    without = [prefix for prefix, sidecar in sidecars.items() if sidecar is None]
    if len(without) == len(sidecars):
        return None
    if without:
        raise DataError(
            f"{without[0]}: has no sidecar while others have; remove theirs to join them unchecked"
        )
    parts = [sidecar for sidecar in sidecars.values() if sidecar]
    first, *rest = parts
    for prefix, other in zip(list(sidecars)[1:], rest, strict=True):
        for name in ("type", "model"):
            other["tokenizer"][name] = first["tokenizer"][name]  # where it lies does not matter
        same = other["tokenizer"]["fingerprint"] == first["tokenizer"]["fingerprint"]
        ends = [part.get("options", {}).get("append_eod") for part in (first, other)]
        if not same or ends[0] != ends[1]:
            what = "tokenizer" if not same else "choice of --append-eod"
            raise DataError(f"{prefix}: was made with another {what} than {prefixes[0]}")
    counts = {
        name: sum(part["counts"][name] for part in parts)
        for name in ("documents", "sequences", "tokens")
    }
    return {
        "tool": f"helm_megatron {__version__} tools/merge_datasets.py",
        "tokenizer": first["tokenizer"],
        "options": first.get("options", {}),
        "counts": counts,
        "sources": [source for part in parts for source in part.get("sources", [])],
        "parts": list(prefixes),
    }


def _lengths(indices: Sequence[Index]) -> Iterator[np.ndarray]:
    for index in indices:
        for start in range(0, index.sequences, CHUNK):
            yield index.lengths[start : start + CHUNK]


def _bounds(indices: Sequence[Index]) -> Iterator[np.ndarray]:
    yield np.zeros(1, np.int64)
    before = 0
    for index in indices:
        for start in range(1, index.documents + 1, CHUNK):
            yield index.bounds[start : start + CHUNK] + before
        before += index.sequences
