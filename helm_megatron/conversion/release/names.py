"""The authors' released checkpoints: which of their tensors hold which of our parameters.

Widths there count the time coordinate, which comes first: a linear's weight is `[out, 1 + in]`. The
table is read forward to import a checkpoint, and backward, where each rule is differentiable, to
export one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from helm_megatron.config import CURVATURES
from helm_megatron.conversion.table import (
    GATE_UP,
    SAME,
    MappingError,
    Rows,
    Rule,
    found,
    joined,
    pattern,
    same,
)
from helm_megatron.geometry import lorentz
from helm_megatron.moe.curvature import bounded_softplus
from helm_megatron.transformer_config import HelmTransformerConfig

# Released entries that no parameter of ours corresponds to, and why.
IGNORED = {
    r"(.*\.)?(c|manifold(_\w+)?\.[kc])": "curvatures of the base manifolds (config), aliases",
    r"attn_mask": "the causal mask",
    r"freqs_(complex|cis)(\.real|\.imag)?": "the rotary table",
    r"(.*\.)?attn\.bias": "added to every score of a row, so the softmax cancels it",
    r"(.*\.)?add_pos\..*": "learned positions, which the released models do not use",
}


def from_release(state: Mapping[str, Tensor], config: HelmTransformerConfig) -> dict[str, Tensor]:
    """The released tensors `state` under our names, in our layout.

    Raises MappingError for an entry that is neither known nor named as ignored, for an incomplete
    group (a query without its key), and for a value that has no counterpart.
    """
    result: dict[str, Tensor] = {}
    for rule in rules_of(state, config):
        result |= loaded(rule, state, config)
    return result


def loaded(
    rule: Rule, state: Mapping[str, Tensor], config: HelmTransformerConfig
) -> dict[str, Tensor]:
    """What one rule without `*` gives of ours; MappingError for a value without counterpart."""
    try:
        tensors = rule.load(config, [state[name] for name in rule.theirs])
    except ValueError as error:
        raise MappingError(f"{rule.theirs[0]}: {error}") from error
    return dict(zip(rule.ours, tensors, strict=True))


def to_release(
    parameters: Mapping[str, Tensor], config: HelmTransformerConfig
) -> dict[str, Tensor]:
    """Our parameters under the released names, differentiably; MappingError as in its inverse."""
    result: dict[str, Tensor] = {}
    for rule in found(rules(config), parameters, "ours"):
        tensors = rule.save(config, [parameters[name] for name in rule.ours])
        result |= zip(rule.theirs, tensors, strict=True)
    return result


def load_release(model: GPTModel, state: Mapping[str, Tensor]) -> None:
    """Load the released tensors into a whole model of `config_from_release`.

    Raises MappingError as `from_release`, or if the two do not hold the same parameters.
    """
    result = model.load_state_dict(from_release(state, model.config), strict=False)
    missing = [name for name in result.missing_keys if not name.endswith("_extra_state")]
    if missing or result.unexpected_keys:
        kind = "lacks" if missing else "has, but the model does not,"
        name = (missing or result.unexpected_keys)[0]
        raise MappingError(f"the released checkpoint {kind} what is {name} here")


def is_ignored(name: str) -> bool:
    """Whether a released entry is one of those that `IGNORED` gives the reasons for."""
    return any(re.fullmatch(pattern, name) for pattern in IGNORED)


def rules_of(state: Mapping[str, Tensor], config: HelmTransformerConfig) -> list[Rule]:
    """The rules without `*` for released tensors; MappingError for one that none has."""
    known = {name for rule in rules(config) for name in rule.theirs}
    used = [name for name in state if pattern(name) in known or not is_ignored(name)]
    return found(rules(config), used, "theirs")


def rules(config: HelmTransformerConfig) -> list[Rule]:
    """The rules of the architecture that the config describes."""
    return _mice_rules(config) if config.multi_latent_attention else _dense_rules(config)


def _dense_rules(config: HelmTransformerConfig) -> list[Rule]:
    block, layer = "resblocks.*", "decoder.layers.*"
    queries_keys_values = [f"{block}.attn.W{letter}" for letter in "qkv"]
    return [
        _embedding(config, "token_embed"),
        *_linear(f"{layer}.self_attention.linear_qkv", *queries_keys_values, rows=_QKV),
        *_plain_linear(f"{block}.attn.final_linear", f"{layer}.self_attention.linear_proj"),
        same(f"{block}.attn.scale", f"{layer}.self_attention.core_attention.temperature"),
        *_feed_forward(f"{block}.mlp", f"{layer}.mlp"),
        same(f"{block}.ln_1.weight", f"{layer}.input_layernorm.weight"),
        same(f"{block}.ln_2.weight", f"{layer}.pre_mlp_layernorm.weight"),
        *_residual(f"{block}.res1", f"{layer}.self_attn_bda"),
        *_residual(f"{block}.res2", f"{layer}.mlp_bda"),
        *_head("ln_final", "mapping"),
    ]


def _mice_rules(config: HelmTransformerConfig) -> list[Rule]:
    block, layer = "layers.*", "decoder.layers.*"
    attn, mla = f"{block}.attn", f"{layer}.self_attention"
    moe, mlp = f"{block}.ffn", f"{layer}.mlp"
    expert, local_expert = f"{moe}.experts.*", f"{mlp}.experts.local_experts.*"
    return [
        _embedding(config, "embed"),
        *_linear(f"{mla}.linear_q_proj", f"{attn}.wq.linear"),
        *_linear(f"{mla}.linear_kv_down_proj", f"{attn}.wkv_a.linear"),
        same(f"{attn}.kv_norm.weight", f"{mla}.kv_layernorm.weight"),
        *_linear(f"{mla}.linear_kv_up_proj", f"{attn}.wkv_b.linear"),
        *_plain_linear(f"{attn}.wo.linear", f"{mla}.linear_proj"),
        same(f"{attn}.softmax_scale", f"{mla}.core_attention.temperature"),
        *_feed_forward(moe, mlp),
        same(f"{moe}.gate.weight", f"{mlp}.router.weight"),
        same(f"{moe}.gate.bias", f"{mlp}.router.expert_bias"),
        *_feed_forward(expert, local_expert),
        _curvature(f"{expert}.expert_manifold.k", f"{local_expert}.curvature.raw"),
        *_feed_forward(f"{moe}.shared_experts", f"{mlp}.shared_experts"),
        *_residual(f"{moe}.add_experts", f"{mlp}.add_experts"),
        same(f"{block}.attn_norm.weight", f"{layer}.input_layernorm.weight"),
        same(f"{block}.ffn_norm.weight", f"{layer}.pre_mlp_layernorm.weight"),
        *_residual(f"{block}.attn_res", f"{layer}.self_attn_bda"),
        *_residual(f"{block}.ffn_res", f"{layer}.mlp_bda"),
        *_head("norm", "head"),
    ]


def _join_heads(config: HelmTransformerConfig, parts: list[Tensor]) -> Tensor:
    by_head = [part.unflatten(0, (config.num_attention_heads, -1)) for part in parts]
    return torch.stack(by_head, dim=1).flatten(0, 2)


def _split_heads(config: HelmTransformerConfig, rows: Tensor) -> list[Tensor]:
    by_head = rows.unflatten(0, (config.num_attention_heads, 3, -1))
    return [part.flatten(0, 1) for part in by_head.unbind(1)]


# Megatron keeps query, key and value of a head together.
_QKV = Rows(_join_heads, _split_heads)


def _linear(ours: str, *released: str, rows: Rows = SAME) -> list[Rule]:
    """A Lorentz linear: its time column apart from its weight."""

    def load(config: HelmTransformerConfig, weights: list[Tensor]) -> list[Tensor]:
        whole = rows.join(config, weights)
        return [whole[:, 1:], whole[:, 0]]

    def save(config: HelmTransformerConfig, tensors: list[Tensor]) -> list[Tensor]:
        weight, time_weight = tensors
        return rows.split(config, torch.cat([time_weight.unsqueeze(1), weight], dim=1))

    bias = joined([f"{name}.bias" for name in released], f"{ours}.bias", rows)
    weights = tuple(f"{name}.weight" for name in released)
    return [Rule(weights, (f"{ours}.weight", f"{ours}.time_weight"), load, save), bias]


def _plain_linear(released: str, ours: str) -> list[Rule]:
    """The linear after attention, over ambient heads on both sides."""
    return [same(f"{released}.{part}", f"{ours}.{part}") for part in ("weight", "bias")]


def _feed_forward(released: str, ours: str) -> list[Rule]:
    gate, up, down = (f"{released}.{name}.linear" for name in ("w1", "w3", "w2"))
    return [
        *_linear(f"{ours}.linear_fc1", gate, up, rows=GATE_UP),
        *_linear(f"{ours}.linear_fc2", down),
    ]


def _residual(released: str, ours: str) -> list[Rule]:
    """Weight and, where it is learned, log scale; released as scalars, ours `[1]`."""

    def scalar(theirs: str, mine: str) -> Rule:
        return Rule(
            (f"{released}.{theirs}",),
            (f"{ours}.{mine}",),
            lambda config, tensors: [tensors[0].reshape(1)],
            lambda config, tensors: [tensors[0].reshape(())],
        )

    return [scalar("w_y", "weight"), scalar("scale", "log_scale")]


def _head(norm: str, logits: str) -> list[Rule]:
    end = "decoder.final_layernorm"
    logits_weight, _no_bias = _linear("output_layer", logits)
    return [
        *_linear(f"{end}.proj", "final_proj.linear"),
        same(f"{norm}.weight", f"{end}.norm.weight"),
        logits_weight,
    ]


def _embedding(config: HelmTransformerConfig, released: str) -> Rule:
    """A table of space coordinates, or of points `[time, space]`."""
    ours = "embedding.word_embeddings.weight"
    if config.helm.embedding == "euclidean":
        return same(f"{released}.weight", ours)

    def save(config: HelmTransformerConfig, tensors: list[Tensor]) -> list[Tensor]:
        time = lorentz.time(tensors[0], config.helm.embedding_curvature)
        return [torch.cat([time, tensors[0]], dim=-1)]

    return Rule((f"{released}.embedding",), (ours,), lambda config, t: [t[0][:, 1:]], save)


def _curvature(released: str, ours: str) -> Rule:
    """The curvature of an expert, ours as the softplus of a parameter."""

    def load(config: HelmTransformerConfig, tensors: list[Tensor]) -> list[Tensor]:
        c, (low, high) = tensors[0].reshape(1).double(), CURVATURES
        if not c.item() > 0:
            raise ValueError(f"curvature {c.item():g} is not positive, so it has no hyperboloid")
        if not low <= c.item() <= high:
            raise ValueError(
                f"curvature {c.item():g}: an expert's is from {low:g} to {high:g} here, and would "
                "become another"
            )
        return [(c + torch.log(-torch.expm1(-c))).to(tensors[0])]

    return Rule((released,), (ours,), load, lambda config, t: [bounded_softplus(t[0]).reshape(())])
