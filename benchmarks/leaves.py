#!/usr/bin/env python3
"""Each leaf of a HELM model against what stands in its place in the Euclidean twin.

Leaves are taken out of the two models with the inputs that they have there. Times are of forward,
and of forward and backward; memory is what is kept from forward to backward, with the output.

    python benchmarks/leaves.py --shape mice-120m --seq-length 1024 --micro-batch-size 1
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from measure import add_output, in_turns, kept_bytes, report
from models import add_steps
from shapes import GEOMETRIES, add_shape, arguments, model_args
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from helm_megatron.process_groups import process_groups
from helm_megatron.verify.layouts import job

ATTENTION, MLP = "decoder.layers.{dense}.self_attention", "decoder.layers.{dense}.mlp"
# Row of the table, and the module: in the first dense layer or the first with experts.
LEAVES = {
    "embedding": "embedding",
    "norm": "decoder.layers.{dense}.input_layernorm",
    "linear to q, k, v": f"{ATTENTION}.linear_qkv",
    "linear to q": f"{ATTENTION}.linear_q_proj",
    "linear to latent": f"{ATTENTION}.linear_kv_down_proj",
    "linear from latent": f"{ATTENTION}.linear_kv_up_proj",
    "attention core": f"{ATTENTION}.core_attention",
    "linear after attention": f"{ATTENTION}.linear_proj",
    "attention": ATTENTION,
    "MLP": MLP,
    "router": "decoder.layers.{moe}.mlp.router",
    "MoE layer": "decoder.layers.{moe}.mlp",
    "layer": "decoder.layers.{dense}",
    "layer with experts": "decoder.layers.{moe}",
    "end of decoder": "decoder.final_layernorm",
    "head": "output_layer",
}
RESIDUAL = "residual and norm"


class Leaf:
    """A function of tensors with the inputs and weights that its gradients are taken of."""

    def __init__(
        self, function: Callable[..., Any], args: tuple, kwargs: dict, weights: list[Tensor]
    ) -> None:
        self.function, self.weights = function, weights
        self.args, self.kwargs = tree_map(_fresh, (args, kwargs))
        self.inputs = [
            t
            for t in tree_leaves((self.args, self.kwargs))
            if torch.is_tensor(t) and t.requires_grad
        ]

    def forward(self) -> Tensor:
        """The first output."""
        out = self.function(*self.args, **self.kwargs)
        return out[0] if isinstance(out, tuple) else out

    def forward_backward(self) -> None:
        """Also the gradients of all inputs and weights."""
        out = self.forward()
        torch.autograd.grad(
            out, self.inputs + self.weights, torch.ones_like(out), allow_unused=True
        )


def _fresh(value: Any) -> Any:
    if not torch.is_tensor(value):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def leaves(args: Namespace) -> dict[str, Leaf]:
    """The leaves of one model, with their inputs in one micro-batch."""
    [chunk] = job(args, 1).chunks
    model = getattr(chunk.module, "module", chunk.module)
    modules = dict(model.named_modules())
    experts = [hasattr(layer.mlp, "router") for layer in model.decoder.layers]
    places = {
        "dense": experts.index(False) if False in experts else None,
        "moe": experts.index(True) if True in experts else None,
    }
    found: dict[str, Leaf] = {}
    for name, pattern in LEAVES.items():
        path = pattern.format(**places)
        if path in modules:
            _record(found, name, modules[path])
    tokens = torch.randint(args.padded_vocab_size, (args.micro_batch_size, args.seq_length))
    tokens = tokens.to(torch.cuda.current_device())
    positions = torch.arange(args.seq_length, device=tokens.device).expand(tokens.shape)
    model(tokens, positions, None, labels=tokens)
    [x] = [t for t in found["attention"].inputs if t.dim() == 3]
    found[RESIDUAL] = _residual(model.decoder.layers[places["dense"] or 0], x)
    return {name: found[name] for name in (*LEAVES, RESIDUAL) if name in found}


def _record(found: dict[str, Leaf], name: str, module: torch.nn.Module) -> None:
    def before(_: Any, args: tuple, kwargs: dict) -> None:
        weights = [p for p in module.parameters() if p.requires_grad]
        found[name] = Leaf(module, args, kwargs, weights)
        handle.remove()

    handle = module.register_forward_pre_hook(before, with_kwargs=True)


def _residual(layer: Any, x: Tensor) -> Leaf:
    """From the output of attention and the stream to the next stream and its norm (their sum).

    HELM computes the two at once.
    """
    join = layer.self_attn_bda(True, layer.config.bias_dropout_fusion)
    norm = layer.pre_mlp_layernorm

    def function(f_with_bias: tuple, x: Tensor, dropout: float) -> Tensor:
        out = join(f_with_bias, x, dropout)
        normed = norm(out)
        # A norm may return what it was given, finished, with its own result.
        normed, out = normed if isinstance(normed, tuple) else (normed, out)
        return normed + out

    owners = [norm, getattr(layer, "self_attn_bda", None)]
    weights = [p for m in owners if isinstance(m, torch.nn.Module) for p in m.parameters()]
    return Leaf(function, ((torch.randn_like(x), None), x, 0.0), {}, weights)


def measure(options: Namespace, changes: list[str]) -> list[dict[str, Any]]:
    """For each leaf that both models have: seconds and bytes of either."""
    args = {name: model_args(options, name, changes) for name in GEOMETRIES}
    results = []
    with process_groups(args["HELM"]):
        models = {name: leaves(a) for name, a in args.items()}
        turns = options.steps, options.warm_up
        for leaf in models["HELM"]:
            pair = {name: found[leaf] for name, found in models.items()}
            with torch.no_grad():
                forward = in_turns({n: p.forward for n, p in pair.items()}, *turns)
            both = in_turns({n: p.forward_backward for n, p in pair.items()}, *turns)
            for name, one in pair.items():
                results.append(
                    {
                        "leaf": leaf,
                        "model": name,
                        "forward": forward[name].wall,
                        "forward and backward": both[name].wall,
                        "CPU": both[name].cpu,
                        "bytes": kept_bytes(one.forward),
                    }
                )
    return results


def rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table: a row a leaf."""
    table = []
    for helm, twin in zip(results[::2], results[1::2], strict=True):
        row = {"leaf": helm["leaf"]}
        for key in ("forward", "forward and backward"):
            row[f"{key}, ms: HELM"] = f"{1e3 * helm[key]:.2f}"
            row[f"{key}: Euclidean"] = f"{1e3 * twin[key]:.2f}"
            row[f"{key}: ratio"] = f"{helm[key] / twin[key]:.2f}"
        row["CPU time: ratio"] = f"{helm['CPU'] / twin['CPU']:.2f}"
        row["kept, MB"] = f"{helm['bytes'] / 1e6:.2f}"
        row["kept: ratio"] = f"{helm['bytes'] / max(twin['bytes'], 1):.2f}"
        table.append(row)
    return table


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shape(parser)
    add_steps(parser)
    add_output(parser)
    options, changes = arguments(parser)
    results = measure(options, changes)
    report(rows(results), options.output, results)


if __name__ == "__main__":
    main()
