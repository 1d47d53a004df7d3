"""A checkpoint file of the authors' release, `Step*.pt`, read tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from helm_megatron.checkpoint.files import CheckpointError
from helm_megatron.conversion.release.names import loaded, rules_of
from helm_megatron.conversion.table import MappingError, Rule
from helm_megatron.transformer_config import HelmTransformerConfig


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


class ReleasedTensors:
    """Released tensors under Megatron's names, each converted when it is read."""

    def __init__(self, path: Path, state: dict[str, Tensor], config: HelmTransformerConfig) -> None:
        """Look at the tensors, one after the other.

        Raises:
            CheckpointError: one is unknown or has no counterpart.
        """
        self._state, self._config = state, config
        self._found: dict[str, tuple[Rule, torch.Size, torch.dtype]] = {}
        try:
            for rule in rules_of(state, config):
                for name, tensor in loaded(rule, state, config).items():
                    self._found[name] = (rule, tensor.shape, tensor.dtype)
        except MappingError as error:
            raise CheckpointError(f"{path}: {error}") from error

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
        return loaded(self._found[name][0], self._state, self._config)[name]
