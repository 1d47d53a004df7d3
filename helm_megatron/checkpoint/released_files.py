"""A checkpoint file of the authors' release, `Step*.pt`, read layer by layer."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from helm_megatron.checkpoint.files import CheckpointError
from helm_megatron.checkpoint.release import from_release
from helm_megatron.transformer_config import HelmTransformerConfig

_LAYER = re.compile(r"(layers|resblocks)\.\d+\.")


def read_release(path: Path) -> dict[str, Tensor]:
    """The model's tensors in a released file, mapped rather than read where that is possible.

    Raises:
        CheckpointError: it is no such file, or holds more than tensors and plain values.
    """
    try:
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except Exception as error:  # unpickling foreign data raises anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} cannot be read as a released checkpoint: {reason}"
        ) from error
    state = data.get("model_state_dict", data) if isinstance(data, dict) else None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} is no released checkpoint: it has no model_state_dict")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


class ReleasedParameters:
    """Released tensors under Megatron's names; one layer is converted and held at a time."""

    def __init__(self, path: Path, state: dict[str, Tensor], config: HelmTransformerConfig) -> None:
        """Look at the tensors.

        Raises:
            CheckpointError: one is unknown or has no counterpart.
        """
        self.path, self.config = path, config
        self._groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in state.items():
            match = _LAYER.match(name)
            self._groups[match[0] if match else ""][name] = tensor
        self._held: tuple[str, dict[str, Tensor]] = ("none", {})
        self._found: dict[str, tuple[str, torch.Size, torch.dtype]] = {}
        for group in self._groups:
            for name, tensor in self._converted(group).items():
                self._found[name] = (group, tensor.shape, tensor.dtype)

    def names(self) -> list[str]:
        """Megatron's names of all parameters."""
        return list(self._found)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter."""
        return tuple(self._found[name][1])

    def dtype(self, name: str) -> torch.dtype:
        """The type of a parameter."""
        return self._found[name][2]

    def read(self, name: str) -> Tensor:
        """A parameter."""
        return self._converted(self._found[name][0])[name]

    def _converted(self, group: str) -> dict[str, Tensor]:
        if self._held[0] != group:
            try:
                self._held = (group, from_release(self._groups[group], self.config))
            except ValueError as error:
                raise CheckpointError(f"{self.path}: {error}") from error
        return self._held[1]
