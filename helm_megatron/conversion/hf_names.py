"""Which tensors of the Hugging Face model hold which parameters of Megatron's.

Megatron fuses what the Hugging Face model keeps apart, never the reverse, so each rule has one name
of ours and one or more of theirs, whose rows (dimension 0) lie in it in the order of its `Rows`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from helm_megatron.conversion.table import GATE_UP, SAME, Rows, Rule, found, joined, same
from helm_megatron.hf.configuration_helm import HelmConfig

# Entries of a Megatron checkpoint that hold no parameter, and why.
IGNORED = {
    r".*\._extra_state(/.*)?": "state of fp8 scaling",
    r"(chained_\d+\.)?(optimizer|optim)\..*": "optimizer state",
    r"(rng_state|common_state|content_metadata|rerun_state_machine_state).*": "state of the run",
    r".*\.router\.(local_tokens_per_expert|global_tokens_per_expert.*)": "counts of the step",
}


def _split_groups(config: HelmConfig, fused: Tensor) -> list[Tensor]:
    groups = config.num_key_value_heads or config.num_attention_heads
    queries = config.num_attention_heads // groups
    by_group = fused.unflatten(0, (groups, queries + 2, config.head_dim))
    return [part.flatten(0, 2) for part in by_group.split([queries, 1, 1], dim=1)]


def _join_groups(config: HelmConfig, parts: list[Tensor]) -> Tensor:
    shape = (config.num_key_value_heads, -1, config.head_dim)
    return torch.cat([part.unflatten(0, shape) for part in parts], dim=1).flatten(0, 2)


# Megatron keeps the queries of a group with its key and value.
_QKV = Rows(_join_groups, _split_groups)
# Megatron's rows beyond the vocabulary are padding.
_VOCABULARY: Rows[HelmConfig] = Rows(
    lambda config, parts: parts[0],
    lambda config, padded: [padded[: config.vocab_size]],
)
_OF_VOCABULARY = ("embedding.word_embeddings.", "output_layer.")


def _linear(megatron: str, *hf: str, rows: Rows = SAME) -> list[Rule]:
    parts = ("weight", "time_weight", "bias")
    return [joined([f"{name}.{p}" for name in hf], f"{megatron}.{p}", rows) for p in parts]


def _weight(megatron: str, hf: str, name: str = "weight") -> Rule:
    return same(f"{hf}.{name}", f"{megatron}.{name}")


def _feed_forward(megatron: str, hf: str) -> list[Rule]:
    return [
        *_linear(f"{megatron}.linear_fc1", f"{hf}.gate_proj", f"{hf}.up_proj", rows=GATE_UP),
        *_linear(f"{megatron}.linear_fc2", f"{hf}.down_proj"),
    ]


def _residual(megatron: str, hf: str) -> list[Rule]:
    return [_weight(megatron, hf), _weight(megatron, hf, "log_scale")]


def _attention(megatron: str, hf: str) -> list[Rule]:
    q, k, v = (f"{hf}.{letter}_proj" for letter in "qkv")
    return [
        *_linear(f"{megatron}.linear_qkv", q, k, v, rows=_QKV),
        _weight(f"{megatron}.q_layernorm", f"{hf}.q_norm"),
        _weight(f"{megatron}.k_layernorm", f"{hf}.k_norm"),
    ]


def _latent_attention(megatron: str, hf: str) -> list[Rule]:
    return [
        *_linear(f"{megatron}.linear_q_proj", f"{hf}.q_proj"),
        *_linear(f"{megatron}.linear_q_down_proj", f"{hf}.q_a_proj"),
        _weight(f"{megatron}.q_layernorm", f"{hf}.q_a_layernorm"),
        *_linear(f"{megatron}.linear_q_up_proj", f"{hf}.q_b_proj"),
        *_linear(f"{megatron}.linear_kv_down_proj", f"{hf}.kv_a_proj"),
        _weight(f"{megatron}.kv_layernorm", f"{hf}.kv_a_layernorm"),
        *_linear(f"{megatron}.linear_kv_up_proj", f"{hf}.kv_b_proj"),
    ]


def _experts(megatron: str, hf: str) -> list[Rule]:
    expert, local = f"{hf}.experts.*", f"{megatron}.experts.local_experts.*"
    bias = same(f"{hf}.gate.e_score_correction_bias", f"{megatron}.router.expert_bias")
    return [
        _weight(f"{megatron}.router", f"{hf}.gate"),
        bias,
        *_feed_forward(local, expert),
        same(f"{expert}.curvature", f"{local}.curvature.raw"),
        *_feed_forward(f"{megatron}.shared_experts", f"{hf}.shared_experts"),
        *_residual(f"{megatron}.add_experts", f"{hf}.add_experts"),
    ]


def table(config: HelmConfig) -> list[Rule]:
    """The rules of the architecture that the config describes."""
    layer, hf = "decoder.layers.*", "model.layers.*"
    end = "decoder.final_layernorm"
    attention = _attention if config.kv_lora_rank is None else _latent_attention
    norm = f"{end}.norm" if config.geometry == "lorentz" else end
    return [
        joined(["model.embed_tokens.weight"], "embedding.word_embeddings.weight", _VOCABULARY),
        _weight(f"{layer}.input_layernorm", f"{hf}.input_layernorm"),
        *attention(f"{layer}.self_attention", f"{hf}.self_attn"),
        *_linear(f"{layer}.self_attention.linear_proj", f"{hf}.self_attn.o_proj"),
        _weight(f"{layer}.self_attention.core_attention", f"{hf}.self_attn", "temperature"),
        *_residual(f"{layer}.self_attn_bda", f"{hf}.attn_residual"),
        _weight(f"{layer}.pre_mlp_layernorm", f"{hf}.post_attention_layernorm"),
        *_feed_forward(f"{layer}.mlp", f"{hf}.mlp"),
        *_experts(f"{layer}.mlp", f"{hf}.mlp"),
        *_residual(f"{layer}.mlp_bda", f"{hf}.mlp_residual"),
        *_linear(f"{end}.proj", "model.final_proj"),
        _weight(norm, "model.norm"),
        *_linear("output_layer", "lm_head", rows=_VOCABULARY),
    ]


def ignored(name: str) -> str | None:
    """Why an entry of a Megatron checkpoint is not converted; None if it is."""
    return next((why for pattern, why in IGNORED.items() if re.fullmatch(pattern, name)), None)


def is_of_vocabulary(name: str) -> bool:
    """Whether the rows of a parameter of Megatron's are those of the vocabulary, which it pads."""
    return name.startswith(_OF_VOCABULARY)


def plan(config: HelmConfig, names: Iterable[str]) -> list[Rule[HelmConfig]]:
    """A rule without `*` for every parameter of the Megatron model of the config.

    `names` are those of a whole Hugging Face model.

    Raises:
        MappingError: for a name that no rule has, or a part without its others.
    """
    return found(table(config), names, "theirs")
