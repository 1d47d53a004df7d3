"""A model to convert: its tensors, each read when it is asked for, and what goes with them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from helm_megatron.conversion.text import Text
from helm_megatron.hf.configuration_helm import HelmConfig


class Tensors(Protocol):
    """Tensors by name, each read when it is asked for."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> torch.dtype: ...

    def read(self, name: str) -> Tensor: ...


@dataclass
class SourceModel:
    """A model to convert."""

    name: str
    # Under Megatron's names.
    parameters: Tensors
    config: HelmConfig
    text: Text
    # Its logits of tokens `[b, s]`, in fp32.
    logits: Callable[[Tensor], Tensor]
    # The arguments of its training run, for the model card.
    run: argparse.Namespace | None = None
    # Flags of pretrain_helm.py that a checkpoint of it remembers beside those of the model.
    training_flags: tuple[str, ...] = ()
