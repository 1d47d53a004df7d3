"""Parameters of a torch_dist checkpoint, one by one, whatever layout saved them.

Megatron stores each parameter under its name in the whole model, in chunks. Experts, and the layers
of some models, are stacked into one tensor; here each is read alone, so that memory is bounded by
the largest parameter.
"""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helm_megatron.checkpoint import files
from helm_megatron.checkpoint.files import CheckpointError


class StoredParameters:
    """The tensors of a checkpoint folder by the names of the one-process model's parameters."""

    def __init__(self, folder: Path) -> None:
        """Open the checkpoint.

        Raises:
            CheckpointError: it is not a whole torch_dist checkpoint, or not what was written.
        """
        files.check_whole(folder)
        files.check_hashes(folder)
        if any(folder.glob("mp_rank_0*")):
            raise CheckpointError(
                f"{folder} is not in Megatron's torch_dist format; load it and save it again with "
                "--ckpt-format torch_dist"
            )
        self.folder = folder
        index = files.read_index(folder)
        self._chunks: dict[str, Any] = {
            key: entry for key, entry in index.state_dict_metadata.items() if hasattr(entry, "size")
        }
        self._where = {
            (place.fqn, tuple(place.offset or ())): info
            for place, info in index.storage_data.items()
        }
        self._names: dict[str, tuple[str, tuple[int, ...]]] = {}
        for key, entry in self._chunks.items():
            self._names |= _expanded(key, tuple(entry.size))

    def names(self) -> list[str]:
        """The names of all tensors, an optimizer's too."""
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one parameter."""
        key, leading = self._names[name]
        return tuple(self._chunks[key].size[len(leading) :])

    def dtype(self, name: str) -> torch.dtype:
        """The type of one parameter."""
        return self._chunks[self._names[name][0]].properties.dtype

    def read(self, name: str) -> Tensor:
        """One whole parameter."""
        key, leading = self._names[name]
        result = torch.empty(self.shape(name), dtype=self.dtype(name))
        filled = 0
        for chunk in self._chunks[key].chunks:
            part = self._part(key, tuple(chunk.offsets), tuple(chunk.sizes), leading)
            if part is not None:
                region, tensor = part
                result[region] = tensor
                filled += tensor.numel()
        if filled != result.numel():
            raise CheckpointError(f"{self.folder}: {key} lacks {result.numel() - filled} values")
        return result

    def _part(
        self, key: str, offsets: tuple[int, ...], sizes: tuple[int, ...], leading: tuple[int, ...]
    ) -> tuple[tuple[slice, ...], Tensor] | None:
        """Where a chunk lies in the parameter with these leading indices, and its values there."""
        inside = [i - o for i, o in zip(leading, offsets, strict=False)]
        if any(not 0 <= i < size for i, size in zip(inside, sizes, strict=False)):
            return None
        tensor = self._load(key, offsets)[tuple(inside)]
        n = len(leading)
        spans = zip(offsets[n:], sizes[n:], strict=True)
        return tuple(slice(start, start + size) for start, size in spans), tensor

    def _load(self, key: str, offsets: tuple[int, ...]) -> Tensor:
        info = self._where[key, offsets]
        with (self.folder / info.relative_path).open("rb") as file:
            file.seek(info.offset)
            data = file.read(info.length)
        files.check_sums(io.BytesIO(data), f"{self.folder / info.relative_path}: {key}")
        try:
            return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
        except Exception as error:  # damaged data raises anything
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if isinstance(error, pickle.UnpicklingError):  # torch advises to load it all the same
                reason = "it is damaged, or no tensor"
            shard = self.folder / info.relative_path
            raise CheckpointError(f"{shard}: {key} cannot be read: {reason}") from error


def _expanded(key: str, size: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The parameters that a stored tensor holds: name to key and leading indices."""
    names: dict[str, tuple[int, ...]] = {key: ()}
    if re.match(r"decoder\.layers\.(?!\d)", key):
        rest = key.removeprefix("decoder.layers.")
        names = {f"decoder.layers.{i}.{rest}": (i,) for i in range(size[0])}
    if ".experts.experts." in key:
        stacked = ".experts.experts."
        names = {
            name.replace(stacked, f".experts.local_experts.{e}."): (*leading, e)
            for name, leading in names.items()
            for e in range(size[len(leading)])
        }
    return {name: (key, leading) for name, leading in names.items()}
