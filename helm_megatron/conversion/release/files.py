"""A checkpoint file of the authors' release, `Step*.pt`, read tensor by tensor."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from helm_megatron.checkpoint.files import CheckpointError, check_sums
from helm_megatron.conversion.release.names import is_ignored, loaded, rules_of
from helm_megatron.conversion.table import MappingError, Rule
from helm_megatron.transformer_config import HelmTransformerConfig


def read_release(path: Path) -> dict[str, Tensor]:
    """The model's tensors in a released file, mapped rather than read where that is possible.

    Raises:
        CheckpointError: it is no such file, or holds more than tensors and plain values.
    """
    if path.is_file():
        check_sums(path, str(path))
    try:
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except pickle.UnpicklingError as error:  # torch's own words advise to run what is in the file
        raise CheckpointError(
            f"{path} cannot be read as a released checkpoint: it is damaged, or holds more than "
            "tensors and plain values, which is never loaded: it could run code"
        ) from error
    except Exception as error:  # unpickling foreign data raises anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} cannot be read as a released checkpoint: {reason}"
        ) from error
    state = data.get("model_state_dict", data) if isinstance(data, dict) else None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} is no released checkpoint: it has no model_state_dict")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def check_tensors(
    path: Path, state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse a file whose tensors are not those of its arguments' model.

    Args:
        expected: the shapes of all parameters, by their released names.

    Raises:
        CheckpointError: naming the first tensor that is missing, too many or of another shape.
    """
    wrong = [f"lacks {name}" for name in expected if name not in state]
    known = [name for name in state if name not in expected and not is_ignored(name)]
    wrong += [f"has {name}, which its arguments do not account for" for name in known]
    for name, shape in expected.items():
        if name in state and tuple(state[name].shape) != shape:
            found = tuple(state[name].shape)
            wrong.append(f"has {name} of shape {found}, where its arguments say {shape}")
    if wrong:
        others = f" (and {len(wrong) - 1} more such)" if len(wrong) > 1 else ""
        raise CheckpointError(f"{path} {wrong[0]}{others}")


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
