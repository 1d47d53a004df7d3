"""How Megatron's training loop builds a HELM model: its model config with another builder."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from megatron.core.models.gpt import GPTModel
from megatron.core.pipeline_parallel.utils import (
    is_pp_first_stage,
    is_pp_last_stage,
    is_vp_first_stage,
    is_vp_last_stage,
)
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.training.argument_utils import gpt_config_from_args
from megatron.training.models.gpt import GPTModelBuilder, GPTModelConfig
from megatron.training.vocab_utils import calculate_padded_vocab_size

from helm_megatron.initialization import SEED
from helm_megatron.model import build_model
from helm_megatron.transformer_config import HelmTransformerConfig


@dataclass(kw_only=True)
class HelmModelConfig(GPTModelConfig):
    """Megatron's GPT model config, built as a HELM model or its Euclidean twin.

    `token_count` is the vocabulary without the rows that pad it, where it is known: then they take
    no part in the softmax.
    """

    builder: ClassVar[str] = "helm_megatron.builder.HelmModelBuilder"
    seed: int = SEED
    token_count: int | None = None


def model_config_from_args(
    args: Namespace, config: HelmTransformerConfig, token_count: int | None
) -> HelmModelConfig:
    """The model config of validated flags, with the seed of its initial weights."""
    made: HelmModelConfig = gpt_config_from_args(args, config, HelmModelConfig)
    made.seed, made.token_count = args.seed, token_count
    return made


def model_config(transformer: HelmTransformerConfig, **settings: Any) -> HelmModelConfig:
    """The model config of a transformer config, whose own values stay where `settings` say nothing.

    Megatron's constructor sets each of its fields, and one that `transformer` has too there: left
    out, the defaults of the former would overwrite the latter (`rotary_base` of latent attention).
    """
    shared = [field.name for field in fields(HelmModelConfig) if hasattr(transformer, field.name)]
    kept = {name: getattr(transformer, name) for name in shared}
    return HelmModelConfig(transformer=transformer, **kept | settings)


class HelmModelBuilder(GPTModelBuilder):
    """Builds one pipeline stage; wrapping for distributed training is Megatron's."""

    def build_model(
        self,
        pg_collection: ProcessGroupCollection,
        pre_process: bool | None = None,
        post_process: bool | None = None,
        vp_stage: int | None = None,
    ) -> GPTModel:
        cfg = self._model_config
        stage: dict[str, Any] = {
            "vp_stage": vp_stage,
            "vp_size": cfg.transformer.virtual_pipeline_model_parallel_size,
        }
        if pre_process is None:
            pre_process = is_vp_first_stage(**stage) and is_pp_first_stage(pg_collection.pp)
        if post_process is None:
            post_process = is_vp_last_stage(**stage) and is_pp_last_stage(pg_collection.pp)
        return build_model(
            cfg.transformer,
            vocab_size=self._padded_vocab_size(),
            max_sequence_length=cfg.seq_length,
            pre_process=pre_process,
            post_process=post_process,
            vp_stage=vp_stage,
            token_count=cfg.token_count,
            seed=cfg.seed,
            pg_collection=pg_collection,
            parallel_output=cfg.parallel_output,
            fp16_lm_cross_entropy=cfg.fp16_lm_cross_entropy,
            share_embeddings_and_output_weights=cfg.share_embeddings_and_output_weights,
            position_embedding_type=cfg.position_embedding_type,
            rotary_percent=cfg.rotary_percent,
            rotary_base=cfg.rotary_base,
            rope_scaling=cfg.rope_scaling,
            rope_scaling_factor=cfg.rope_scaling_factor,
            seq_len_interpolation_factor=cfg.seq_len_interpolation_factor,
        )

    def _padded_vocab_size(self) -> int:
        cfg = self._model_config
        if not cfg.should_pad_vocab:
            return cfg.vocab_size
        return calculate_padded_vocab_size(
            cfg.vocab_size,
            cfg.make_vocab_size_divisible_by,
            cfg.transformer.tensor_model_parallel_size,
        )
