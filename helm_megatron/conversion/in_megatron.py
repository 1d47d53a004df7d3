"""A whole Megatron model in this process, to compare logits with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from helm_megatron.builder import HelmModelBuilder, HelmModelConfig
from helm_megatron.conversion.release.names import load_release
from helm_megatron.process_groups import one_process


def build(config: HelmModelConfig) -> GPTModel:
    """The model of a config, in evaluation mode; its parameters are not set."""
    groups = ProcessGroupCollection.use_mpu_process_groups()
    return HelmModelBuilder(config).build_model(groups).eval()


def from_checkpoint(folder: Path) -> Callable[[GPTModel], None]:
    """Loads a torch_dist checkpoint into a model with Megatron's own loader."""

    def load(model: GPTModel) -> None:
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        metadata = dist_checkpointing.load_content_metadata(str(folder)) or {}
        wanted = model.sharded_state_dict(metadata=metadata | {"dp_cp_group": group})
        state = dist_checkpointing.load({"model": wanted}, str(folder))
        model.load_state_dict(state["model"])

    return load


def from_release(state: dict[str, Tensor]) -> Callable[[GPTModel], None]:
    """Loads the authors' released tensors into a model."""
    return lambda model: load_release(model, state)


def logits(
    config: HelmModelConfig, load: Callable[[GPTModel], None], tokens: Tensor, vocab_size: int
) -> Tensor:
    """Logits `[b, s, vocabulary]` of tokens `[b, s]`, without the padded columns."""
    with one_process(), torch.no_grad():
        model: Any = build(config)
        load(model)
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        return model(tokens, positions, None)[..., :vocab_size].clone()
