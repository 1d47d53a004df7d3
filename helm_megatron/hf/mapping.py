"""Which tensors of the Hugging Face model hold which parameters of Megatron's.

One table, read in both directions. `*` stands for the index of a layer or an expert. Megatron fuses
what the Hugging Face model keeps apart, never the reverse, so each row has one name of Megatron's
and one or more of the other side, whose rows (dimension 0) lie in it in the order of `Rows`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from helm_megatron.errors import HelmError
from helm_megatron.hf.configuration_helm import HelmConfig

# Entries of a Megatron checkpoint that hold no parameter, and why.
IGNORED = {
    r".*\._extra_state(/.*)?": "state of fp8 scaling",
    r"(chained_\d+\.)?(optimizer|optim)\..*": "optimizer state",
    r"(rng_state|common_state|content_metadata|rerun_state_machine_state).*": "state of the run",
    r".*\.router\.(local_tokens_per_expert|global_tokens_per_expert.*)": "counts of the step",
}

_INDEX = re.compile(r"(?<=\.)\d+(?=\.)")


class MappingError(HelmError):
    """Tensors that do not make up a model; the message is one line that names the first."""


@dataclass(frozen=True)
class Rows:
    """How the rows of the parts lie in the fused tensor."""

    split: Callable[[HelmConfig, Tensor], list[Tensor]]
    join: Callable[[HelmConfig, list[Tensor]], Tensor]


@dataclass(frozen=True)
class Row:
    """One parameter of Megatron's and the tensors that hold it in the Hugging Face model."""

    megatron: str
    hf: tuple[str, ...]
    rows: Rows


def _split_groups(config: HelmConfig, fused: Tensor) -> list[Tensor]:
    groups = config.num_key_value_heads or config.num_attention_heads
    queries = config.num_attention_heads // groups
    by_group = fused.unflatten(0, (groups, queries + 2, config.head_dim))
    return [part.flatten(0, 2) for part in by_group.split([queries, 1, 1], dim=1)]


def _join_groups(config: HelmConfig, parts: list[Tensor]) -> Tensor:
    shape = (config.num_key_value_heads, -1, config.head_dim)
    return torch.cat([part.unflatten(0, shape) for part in parts], dim=1).flatten(0, 2)


SAME = Rows(lambda config, fused: [fused], lambda config, parts: parts[0])
GATE_UP = Rows(
    lambda config, fused: [*fused.chunk(2)],
    lambda config, parts: torch.cat(parts),
)
# Megatron keeps the queries of a group with its key and value.
QKV = Rows(_split_groups, _join_groups)
# Megatron's rows beyond the vocabulary are padding.
VOCABULARY = Rows(
    lambda config, fused: [fused[: config.vocab_size]],
    lambda config, parts: parts[0],
)


def _linear(megatron: str, *hf: str, rows: Rows = SAME) -> list[Row]:
    parts = ("weight", "time_weight", "bias")
    return [Row(f"{megatron}.{p}", tuple(f"{name}.{p}" for name in hf), rows) for p in parts]


def _weight(megatron: str, hf: str, name: str = "weight") -> Row:
    return Row(f"{megatron}.{name}", (f"{hf}.{name}",), SAME)


def _feed_forward(megatron: str, hf: str) -> list[Row]:
    return [
        *_linear(f"{megatron}.linear_fc1", f"{hf}.gate_proj", f"{hf}.up_proj", rows=GATE_UP),
        *_linear(f"{megatron}.linear_fc2", f"{hf}.down_proj"),
    ]


def _residual(megatron: str, hf: str) -> list[Row]:
    return [_weight(megatron, hf), _weight(megatron, hf, "log_scale")]


def _attention(megatron: str, hf: str) -> list[Row]:
    q, k, v = (f"{hf}.{letter}_proj" for letter in "qkv")
    return [
        *_linear(f"{megatron}.linear_qkv", q, k, v, rows=QKV),
        _weight(f"{megatron}.q_layernorm", f"{hf}.q_norm"),
        _weight(f"{megatron}.k_layernorm", f"{hf}.k_norm"),
    ]


def _latent_attention(megatron: str, hf: str) -> list[Row]:
    return [
        *_linear(f"{megatron}.linear_q_proj", f"{hf}.q_proj"),
        *_linear(f"{megatron}.linear_q_down_proj", f"{hf}.q_a_proj"),
        _weight(f"{megatron}.q_layernorm", f"{hf}.q_a_layernorm"),
        *_linear(f"{megatron}.linear_q_up_proj", f"{hf}.q_b_proj"),
        *_linear(f"{megatron}.linear_kv_down_proj", f"{hf}.kv_a_proj"),
        _weight(f"{megatron}.kv_layernorm", f"{hf}.kv_a_layernorm"),
        *_linear(f"{megatron}.linear_kv_up_proj", f"{hf}.kv_b_proj"),
    ]


def _experts(megatron: str, hf: str) -> list[Row]:
    expert, local = f"{hf}.experts.*", f"{megatron}.experts.local_experts.*"
    bias = Row(f"{megatron}.router.expert_bias", (f"{hf}.gate.e_score_correction_bias",), SAME)
    return [
        _weight(f"{megatron}.router", f"{hf}.gate"),
        bias,
        *_feed_forward(local, expert),
        Row(f"{local}.curvature.raw", (f"{expert}.curvature",), SAME),
        *_feed_forward(f"{megatron}.shared_experts", f"{hf}.shared_experts"),
        *_residual(f"{megatron}.add_experts", f"{hf}.add_experts"),
    ]


def table(config: HelmConfig) -> list[Row]:
    """The rows of the architecture that the config describes."""
    layer, hf = "decoder.layers.*", "model.layers.*"
    end = "decoder.final_layernorm"
    attention = _attention if config.kv_lora_rank is None else _latent_attention
    norm = f"{end}.norm" if config.geometry == "lorentz" else end
    return [
        Row("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), VOCABULARY),
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
        *_linear("output_layer", "lm_head", rows=VOCABULARY),
    ]


def ignored(name: str) -> str | None:
    """Why an entry of a Megatron checkpoint is not converted; None if it is."""
    return next((why for pattern, why in IGNORED.items() if re.fullmatch(pattern, name)), None)


def plan(config: HelmConfig, hf_names: Iterable[str]) -> list[Row]:
    """A row without `*` for every parameter of the Megatron model of the config.

    `hf_names` are those of a whole Hugging Face model.

    Raises:
        MappingError: for a name that no row has, or a part without its others.
    """
    rows: dict[str, Row] = {}
    names, taken = list(hf_names), set()
    known = {pattern: row for row in table(config) for pattern in row.hf}
    for name in names:
        row = known.get(_INDEX.sub("*", name))
        if row is None:
            raise MappingError(f"unknown tensor {name}: not of a HELM model")
        indices = _INDEX.findall(name)
        found = Row(_at(row.megatron, indices), tuple(_at(n, indices) for n in row.hf), row.rows)
        rows.setdefault(found.megatron, found)
        taken.add(name)
    for row in rows.values():
        if missing := [name for name in row.hf if name not in taken]:
            raise MappingError(f"tensor {missing[0]} is missing, which belongs to {row.hf[0]}")
    return list(rows.values())


def _at(pattern: str, indices: list[str]) -> str:
    left = iter(indices)
    return re.sub(r"\*", lambda _: next(left), pattern)
