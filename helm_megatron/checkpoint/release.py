"""The authors' released checkpoints: which of their tensors hold which of our parameters.

Widths there count the time coordinate, which comes first: a linear's weight is `[out, 1 + in]`. One
table of rules names both sides; it is read forward to import a checkpoint, and backward, where each
rule is differentiable, to export one. `*` in a name stands for the index of a layer or an expert.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from helm_megatron.geometry import lorentz
from helm_megatron.transformer_config import HelmTransformerConfig

Convert = Callable[[HelmTransformerConfig, list[Tensor]], list[Tensor]]

# Released entries that no parameter of ours corresponds to, and why.
IGNORED = {
    r"(.*\.)?(c|manifold(_\w+)?\.[kc])": "curvatures of the base manifolds (config), aliases",
    r"attn_mask": "the causal mask",
    r"freqs_(complex|cis)(\.real|\.imag)?": "the rotary table",
    r"(.*\.)?attn\.bias": "added to every score of a row, so the softmax cancels it",
    r"(.*\.)?add_pos\..*": "learned positions, which the released models do not use",
}

_INDEX = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class Rule:
    """Released tensors and the parameters of ours that hold the same numbers."""

    released: tuple[str, ...]
    ours: tuple[str, ...]
    load: Convert
    save: Convert


def from_release(state: Mapping[str, Tensor], config: HelmTransformerConfig) -> dict[str, Tensor]:
    """The released tensors `state` under our names, in our layout.

    Raises ValueError for an entry that is neither known nor named as ignored, for an incomplete
    group (a query without its key), and for a value that has no counterpart.
    """
    known = {pattern for rule in rules(config) for pattern in rule.released}
    used = {n: t for n, t in state.items() if _pattern(n) in known or not is_ignored(n)}
    return _convert(used, [(r.released, r.ours, r.load) for r in rules(config)], config)


def to_release(
    parameters: Mapping[str, Tensor], config: HelmTransformerConfig
) -> dict[str, Tensor]:
    """Our parameters under the released names, differentiably; ValueError as in its inverse."""
    return _convert(parameters, [(r.ours, r.released, r.save) for r in rules(config)], config)


def load_release(model: GPTModel, state: Mapping[str, Tensor]) -> None:
    """Load the released tensors into a whole model of `config_from_release`.

    Raises ValueError as `from_release`, or if the two do not hold the same parameters.
    """
    result = model.load_state_dict(from_release(state, model.config), strict=False)
    missing = [name for name in result.missing_keys if not name.endswith("_extra_state")]
    if missing or result.unexpected_keys:
        kind = "lacks" if missing else "has, but the model does not,"
        name = (missing or result.unexpected_keys)[0]
        raise ValueError(f"the released checkpoint {kind} what is {name} here")


def is_ignored(name: str) -> bool:
    """Whether a released entry is one of those that `IGNORED` gives the reasons for."""
    return any(re.fullmatch(pattern, name) for pattern in IGNORED)


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
        _same(f"{block}.attn.scale", f"{layer}.self_attention.core_attention.temperature"),
        *_feed_forward(f"{block}.mlp", f"{layer}.mlp"),
        _same(f"{block}.ln_1.weight", f"{layer}.input_layernorm.weight"),
        _same(f"{block}.ln_2.weight", f"{layer}.pre_mlp_layernorm.weight"),
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
        _same(f"{attn}.kv_norm.weight", f"{mla}.kv_layernorm.weight"),
        *_linear(f"{mla}.linear_kv_up_proj", f"{attn}.wkv_b.linear"),
        *_plain_linear(f"{attn}.wo.linear", f"{mla}.linear_proj"),
        _same(f"{attn}.softmax_scale", f"{mla}.core_attention.temperature"),
        *_feed_forward(moe, mlp),
        _same(f"{moe}.gate.weight", f"{mlp}.router.weight"),
        _same(f"{moe}.gate.bias", f"{mlp}.router.expert_bias"),
        *_feed_forward(expert, local_expert),
        _curvature(f"{expert}.expert_manifold.k", f"{local_expert}.curvature.raw"),
        *_feed_forward(f"{moe}.shared_experts", f"{mlp}.shared_experts"),
        *_residual(f"{moe}.add_experts", f"{mlp}.add_experts"),
        _same(f"{block}.attn_norm.weight", f"{layer}.input_layernorm.weight"),
        _same(f"{block}.ffn_norm.weight", f"{layer}.pre_mlp_layernorm.weight"),
        *_residual(f"{block}.attn_res", f"{layer}.self_attn_bda"),
        *_residual(f"{block}.ffn_res", f"{layer}.mlp_bda"),
        *_head("norm", "head"),
    ]


@dataclass(frozen=True)
class _Rows:
    """How the output rows of several released linears lie in one of ours."""

    join: Callable[[HelmTransformerConfig, list[Tensor]], Tensor]
    split: Callable[[HelmTransformerConfig, Tensor], list[Tensor]]


_SINGLE = _Rows(lambda config, parts: parts[0], lambda config, rows: [rows])
_GATE_UP = _Rows(lambda config, parts: torch.cat(parts), lambda config, rows: [*rows.chunk(2)])


def _join_heads(config: HelmTransformerConfig, parts: list[Tensor]) -> Tensor:
    by_head = [part.unflatten(0, (config.num_attention_heads, -1)) for part in parts]
    return torch.stack(by_head, dim=1).flatten(0, 2)


def _split_heads(config: HelmTransformerConfig, rows: Tensor) -> list[Tensor]:
    by_head = rows.unflatten(0, (config.num_attention_heads, 3, -1))
    return [part.flatten(0, 1) for part in by_head.unbind(1)]


# Megatron keeps query, key and value of a head together.
_QKV = _Rows(_join_heads, _split_heads)


def _linear(ours: str, *released: str, rows: _Rows = _SINGLE) -> list[Rule]:
    """A Lorentz linear: its time column apart from its weight."""

    def load(config: HelmTransformerConfig, weights: list[Tensor]) -> list[Tensor]:
        joined = rows.join(config, weights)
        return [joined[:, 1:], joined[:, 0]]

    def save(config: HelmTransformerConfig, tensors: list[Tensor]) -> list[Tensor]:
        weight, time_weight = tensors
        return rows.split(config, torch.cat([time_weight.unsqueeze(1), weight], dim=1))

    bias = Rule(
        tuple(f"{name}.bias" for name in released),
        (f"{ours}.bias",),
        lambda config, parts: [rows.join(config, parts)],
        lambda config, parts: rows.split(config, parts[0]),
    )
    weights = tuple(f"{name}.weight" for name in released)
    return [Rule(weights, (f"{ours}.weight", f"{ours}.time_weight"), load, save), bias]


def _plain_linear(released: str, ours: str) -> list[Rule]:
    """The linear after attention, over ambient heads on both sides."""
    return [_same(f"{released}.{part}", f"{ours}.{part}") for part in ("weight", "bias")]


def _feed_forward(released: str, ours: str) -> list[Rule]:
    gate, up, down = (f"{released}.{name}.linear" for name in ("w1", "w3", "w2"))
    return [
        *_linear(f"{ours}.linear_fc1", gate, up, rows=_GATE_UP),
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
        _same(f"{norm}.weight", f"{end}.norm.weight"),
        logits_weight,
    ]


def _embedding(config: HelmTransformerConfig, released: str) -> Rule:
    """A table of space coordinates, or of points `[time, space]`."""
    ours = "embedding.word_embeddings.weight"
    if config.helm.embedding == "euclidean":
        return _same(f"{released}.weight", ours)

    def save(config: HelmTransformerConfig, tensors: list[Tensor]) -> list[Tensor]:
        time = lorentz.time(tensors[0], config.helm.embedding_curvature)
        return [torch.cat([time, tensors[0]], dim=-1)]

    return Rule((f"{released}.embedding",), (ours,), lambda config, t: [t[0][:, 1:]], save)


def _curvature(released: str, ours: str) -> Rule:
    """The curvature of an expert, ours as the softplus of a parameter."""

    def load(config: HelmTransformerConfig, tensors: list[Tensor]) -> list[Tensor]:
        c = tensors[0].reshape(1)
        if not c.item() > 0:
            raise ValueError(f"curvature {c.item():g} is not positive, so it has no hyperboloid")
        return [c + torch.log(-torch.expm1(-c))]

    return Rule((released,), (ours,), load, lambda config, t: [F.softplus(t[0]).reshape(())])


def _same(released: str, ours: str) -> Rule:
    return Rule((released,), (ours,), lambda config, t: t, lambda config, t: t)


def _pattern(name: str) -> str:
    return _INDEX.sub("*", name)


def _at(pattern: str, indices: list[str]) -> str:
    left = iter(indices)
    return re.sub(r"\*", lambda _: next(left), pattern)


def _convert(
    state: Mapping[str, Tensor],
    table: list[tuple[tuple[str, ...], tuple[str, ...], Convert]],
    config: HelmTransformerConfig,
) -> dict[str, Tensor]:
    owner = {pattern: row for row in table for pattern in row[0]}
    result: dict[str, Tensor] = {}
    for name in state:
        if _pattern(name) not in owner:
            raise ValueError(f"unknown parameter {name}: not of this HELM architecture")
        indices = _INDEX.findall(name)
        sources, targets, convert = owner[_pattern(name)]
        if _at(targets[0], indices) in result:
            continue
        names = [_at(source, indices) for source in sources]
        if missing := [n for n in names if n not in state]:
            raise ValueError(f"{missing[0]} is missing, which belongs to {name}")
        try:
            converted = convert(config, [state[n] for n in names])
        except ValueError as error:
            raise ValueError(f"{names[0]}: {error}") from error
        result |= zip((_at(target, indices) for target in targets), converted, strict=True)
    return result
