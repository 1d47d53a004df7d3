"""HELMModel: Megatron's GPTModel whose ends are Lorentz too."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel

from helm_megatron.initialization import SEED, drawn_later, initialize
from helm_megatron.layers.chunked_loss import compute_in_chunks
from helm_megatron.layers.embedding import to_hidden_curvature
from helm_megatron.layers.head import lorentz_output_layer
from helm_megatron.layers.vocabulary import mask_padding
from helm_megatron.specs import block_spec
from helm_megatron.transformer_config import HelmTransformerConfig


class HELMModel(GPTModel):
    """A language model on the hyperboloid; GPTModel's arguments, forward and checkpoints.

    The decoder's leaves come from the block spec; here the embedding brings its points to the
    hidden curvature and the logits are taken of the ambient vector.
    """

    def __init__(self, config: HelmTransformerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._join_embedding()
        if self.post_process:
            self.output_layer: Any = lorentz_output_layer(self.output_layer, config)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict:
        """Megatron's; the time weight is padded as the logits' weight is, so it loads as that does.

        Rows that pad the vocabulary differ from layout to layout; Megatron lets the shapes of
        weight and bias differ by them.
        """
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        if self.post_process:
            state[f"{prefix}output_layer.time_weight"].allow_shape_mismatch = True
        return state

    def _join_embedding(self) -> None:
        """Bring points of the embedding's hyperboloid to the hidden one, as the release does.

        A `lorentz` table is rescaled. A `euclidean` one keeps its space coordinates, and its own
        time in the first residual; the norms before have no use for the time.
        """
        helm = self.config.helm
        if helm.embedding == "lorentz":
            if self.pre_process:
                self.embedding.register_forward_hook(to_hidden_curvature)
        elif helm.embedding_curvature != helm.curvature:
            # The first layer may be on another pipeline stage than the embedding.
            for layer in self.decoder.layers:
                if layer.layer_number == 1:
                    layer.self_attn_bda.input_curvature = helm.embedding_curvature


def build_model(
    config: HelmTransformerConfig,
    vocab_size: int,
    max_sequence_length: int,
    pre_process: bool = True,
    post_process: bool = True,
    vp_stage: int | None = None,
    token_count: int | None = None,
    seed: int = SEED,
    **kwargs: Any,
) -> GPTModel:
    """The model of the config's geometry for this pipeline stage.

    `vocab_size` is the padded one, `token_count` that without padding (None: the same). Initial
    weights follow from the seed, in every layout the same. Further keywords are GPTModel's (rotary
    settings, tying).
    """
    model = HELMModel if config.helm.geometry == "lorentz" else GPTModel
    with drawn_later(config) as notes:
        built = model(
            config=config,
            transformer_layer_spec=block_spec(config, vp_stage=vp_stage),
            vocab_size=vocab_size,
            max_sequence_length=max_sequence_length,
            pre_process=pre_process,
            post_process=post_process,
            vp_stage=vp_stage,
            **kwargs,
        )
    initialize(built, notes, seed)
    built.register_load_state_dict_post_hook(_forgive_missing_extra_states)
    if post_process and token_count is not None:
        mask_padding(built, token_count)
    if post_process and config.helm.logits_chunk_size is not None:
        compute_in_chunks(built, config.helm.logits_chunk_size)
    return built


def _forgive_missing_extra_states(_: torch.nn.Module, keys: Any) -> None:
    """Load strictly but for Transformer Engine's extra states, which it makes anew.

    They hold what FP8 has measured. Its attention has one that Megatron does not save, and
    checkpoints of another backend have none. If a strict load fails, Megatron loads what it finds.
    """
    found = keys.missing_keys
    found[:] = [key for key in found if not key.endswith("._extra_state")]
