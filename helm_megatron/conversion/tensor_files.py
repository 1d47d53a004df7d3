"""Safetensors files of a model: written and read one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from helm_megatron.errors import HelmError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


# Pages of an open file count as memory once they were read: it is opened anew after so many.
_MAPPED_BYTES = 2**24


class TensorFileError(HelmError):
    """A safetensors file that cannot be read or written; the message is one line."""


@dataclass(frozen=True)
class Entry:
    """A tensor to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write(
    folder: Path, groups: list[list[Entry]], tensors: Iterable[list[Tensor]], max_bytes: int
) -> None:
    """Write groups of tensors to one or more safetensors files, with an index if more than one.

    `tensors` gives the groups' values in order; only one group is held at a time. A group is not
    split, so a file holds at most `max_bytes` or one group.
    """
    shards: list[list[list[Entry]]] = [[]]
    size = 0
    for group in groups:
        group_size = sum(entry.bytes for entry in group)
        if shards[-1] and size + group_size > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(group)
        size += group_size
    values = iter(tensors)
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        name = SINGLE if len(shards) == 1 else f"model-{i:05}-of-{len(shards):05}.safetensors"
        _write_file(folder / name, shard, values)
        weight_map |= {entry.name: name for group in shard for entry in group}
    if len(shards) > 1:
        total = sum(entry.bytes for group in groups for entry in group)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_file(path: Path, groups: list[list[Entry]], values: Iterator[list[Tensor]]) -> None:
    """One file: the length of the header, the header in JSON, the tensors' bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in (entry for group in groups for entry in group):
        start, end = end, end + entry.bytes
        shape, dtype = list(entry.shape), _NAMES[entry.dtype]
        header[entry.name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for group in groups:
            for entry, tensor in zip(group, next(values), strict=True):
                assert (tensor.dtype, tuple(tensor.shape)) == (entry.dtype, entry.shape), entry
                file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


class TensorFiles:
    """The tensors of a folder's safetensors files, read one at a time."""

    def __init__(self, folder: Path) -> None:
        """Open the files.

        Raises:
            TensorFileError: a file is missing, truncated, or not what the index says.
        """
        self.folder = folder
        index = folder / INDEX
        if index.is_file():
            try:
                weight_map = dict(json.loads(index.read_text())["weight_map"])
                files = sorted({str(Path(name)) for name in weight_map.values()})
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise TensorFileError(f"{index} is not an index of safetensors files") from error
        elif (folder / SINGLE).is_file():
            weight_map, files = None, [SINGLE]
        else:
            raise TensorFileError(f"{folder} has neither {SINGLE} nor {INDEX}")
        # File, shape and type of every tensor.
        self._where: dict[str, str] = {}
        self._kinds: dict[str, tuple[tuple[int, ...], str]] = {}
        for name in files:
            file = self._open(name)
            for tensor in file.keys():  # noqa: SIM118
                view = file.get_slice(tensor)
                self._where[tensor] = name
                self._kinds[tensor] = tuple(view.get_shape()), view.get_dtype()
        self._file: tuple[str, safe_open] | None = None
        self._mapped = 0
        for tensor, name in (weight_map or {}).items():
            if self._where.get(tensor) != name:
                raise TensorFileError(f"{folder / name} lacks {tensor}, which {INDEX} says it has")

    def _open(self, name: str) -> safe_open:
        path = self.folder / name
        if Path(name).name != name:
            raise TensorFileError(f"{self.folder / INDEX} names a file elsewhere: {name}")
        try:
            return safe_open(path, framework="pt")
        except FileNotFoundError as error:
            raise TensorFileError(f"{path} is missing; {INDEX} names it") from error
        except (SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())
            raise TensorFileError(f"{path} is truncated or damaged: {reason}") from error

    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._kinds[name][0]

    def dtype(self, name: str) -> torch.dtype:
        """The type of a tensor."""
        named = self._kinds[name][1]
        found = next((dtype for dtype, known in _NAMES.items() if known == named), None)
        if found is None:
            raise TensorFileError(f"{self.folder / self._where[name]}: {name} is of type {named}")
        return found

    def read(self, name: str) -> Tensor:
        """A tensor, mapped into memory from its file."""
        where = self._where[name]
        if self._file is None or self._file[0] != where or self._mapped > _MAPPED_BYTES:
            self._file, self._mapped = (where, self._open(where)), 0
        tensor = self._file[1].get_tensor(name)
        self._mapped += tensor.nbytes
        return tensor
