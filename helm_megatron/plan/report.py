"""A plan as text and as JSON."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

from helm_megatron.plan.cluster import GIGA, TERA, Cluster
from helm_megatron.plan.estimate import Estimate
from helm_megatron.plan.layout import divisors, tensor_divides
from helm_megatron.plan.search import Plan

NEXT = 3

_HEADER = (
    "      tp  pp vpp  cp  ep etp  mb re |   total = weights + grads +  Adam +  act. | TFLOP |"
    "  step s = compute + bubble + exposed communication"
)

ACCURACY = """\
How exact: weights, gradients and Adam's states are exact but for the padding of Megatron's
buffers; activations and FLOPs of matrix products are those of the real layers, run without data,
with tokens spread evenly over experts (uneven routing takes more of both); bytes are those that the
real layers, the pipeline and data-parallel reductions communicate, but for collectives of a
kilobyte or less. Step times are estimates from bandwidths and FLOP/s alone: they leave out
elementwise kernels, the optimizer step, latencies, stragglers and reading data, and count all
communication as exposed but for data-parallel reductions where the flags overlap them."""


def as_text(args: Namespace, cluster: Cluster, plan: Plan, recipe: Path, top: int) -> str:
    """The plan for a terminal."""
    lines = [
        f"{recipe} on {cluster.gpus} GPUs, {cluster.gpus_per_node} a node: {cluster.memory:g} GB "
        f"({cluster.margin:.0%} kept free), {cluster.tflops:g} TFLOP/s, "
        f"{cluster.intra_node_bandwidth:g} GB/s in a node, {cluster.inter_node_bandwidth:g} GB/s "
        "between nodes"
    ]
    known = plan.own or next(iter(plan.fitting + plan.too_large), None)
    if known is not None:
        tokens = args.global_batch_size * args.seq_length
        lines.append(
            f"{known.parameters / GIGA:.3f} billion parameters, {args.geometry}; "
            f"{tokens / 1e6:.2f} million tokens a step"
        )
    lines += ["", f"{len(plan.fitting)} layouts fit; the fastest (memory in GB, of one GPU):"]
    lines.append(_HEADER)
    lines += [_row(f"{i + 1:3d} ", found) for i, found in enumerate(plan.fitting[:top])]
    if plan.own is not None:
        word = "" if plan.own in plan.fitting else "   DOES NOT FIT"
        lines.append(_row("own ", plan.own) + word)
    elif plan.own_error is not None:
        lines.append(f"own  the recipe's layout cannot be: {plan.own_error}")
    for name, found in (("the first", next(iter(plan.fitting), None)), ("the recipe's", plan.own)):
        if found is not None:
            lines += _details(name, found, args)
    return "\n".join([*lines, *_not_fitting(args, cluster, plan), "", ACCURACY])


def _row(mark: str, e: Estimate) -> str:
    x, m = e.layout, e.memory
    sizes = (x.tensor, x.pipeline, x.virtual, x.context, x.expert, x.expert_tensor, x.micro_batch)
    bytes_ = (m.total, m.parameters, m.gradients, m.optimizer, m.activations)
    total, *terms = (f"{size / GIGA:7.1f}" for size in bytes_)
    return (
        f"{mark}{''.join(f'{size:4d}' for size in sizes)} {'y' if x.recompute else 'n':>2} | "
        f"{total} = {' + '.join(term[1:] for term in terms)} | {e.flops / TERA:5.0f} | "
        f"{e.step:7.2f} = {e.compute:.2f} + {e.bubble:.2f} + {e.exposed:.2f}"
    )


def _details(name: str, e: Estimate, args: Namespace) -> list[str]:
    sizes = ", ".join(
        f"{collective} {group} {size / GIGA:.3g}"
        for (collective, group), size in sorted(e.bytes.items(), key=lambda item: -item[1])
    )
    return [
        "",
        f"{name}: {e.layout.flags(args)}",
        f"  {e.microbatches} micro-batches a step, bubble {e.bubble / e.step:.1%}",
        f"  GB that one GPU communicates a step: {sizes or 'none'}",
    ]


def _not_fitting(args: Namespace, cluster: Cluster, plan: Plan) -> list[str]:
    """What was left out, and why."""
    lines = ["", "Left out:"]
    usable = cluster.usable_bytes / GIGA
    if plan.too_large:
        count = len(plan.too_large)
        lines.append(f"  {count} layouts need more than {usable:.1f} GB; the smallest of them:")
        lines += [_row("    ", found) for found in plan.too_large[:NEXT]]
    lines += [f"  {line}" for line in excluded(args, cluster)]
    lines += [f"  {count} layouts: {reason}" for reason, count in plan.refused.most_common()]
    return lines if len(lines) > 2 else []


def excluded(args: Namespace, cluster: Cluster) -> list[str]:
    """Sizes of groups that the cluster would allow and the model does not."""
    sizes = divisors(cluster.gpus)
    wrong = {
        "tensor parallel": [
            n for n in sizes if n <= cluster.gpus_per_node and not tensor_divides(args, n)
        ],
        "pipeline parallel": [n for n in sizes if args.num_layers % n],
        "expert parallel": [n for n in sizes if (args.num_experts or n) % n],
    }
    why = {
        "tensor parallel": "heads, query groups or widths cannot be divided",
        "pipeline parallel": f"{args.num_layers} layers cannot be divided evenly",
        "expert parallel": f"{args.num_experts} experts cannot be divided",
    }
    return [f"{kind} {', '.join(map(str, n))}: {why[kind]}" for kind, n in wrong.items() if n]


def as_json(args: Namespace, cluster: Cluster, plan: Plan) -> str:
    """The plan with every layout; bytes and seconds, of one GPU and step."""
    content = {
        "cluster": asdict(cluster),
        "recipe": _entry(plan.own, args) if plan.own else None,
        "recipe_error": plan.own_error,
        "fitting": [_entry(found, args) for found in plan.fitting],
        "too_large": [_entry(found, args) for found in plan.too_large],
        "excluded": excluded(args, cluster),
        "refused": dict(plan.refused),
        "accuracy": ACCURACY.replace("\n", " "),
    }
    return json.dumps(content, indent=1)


def _entry(e: Estimate, args: Namespace) -> dict[str, Any]:
    return {
        "layout": asdict(e.layout),
        "flags": e.layout.flags(args),
        "parameters": e.parameters,
        "memory": asdict(e.memory) | {"total": e.memory.total},
        "flops": e.flops,
        "bytes": {f"{collective} {group}": n for (collective, group), n in e.bytes.items()},
        "microbatches": e.microbatches,
        "seconds": {
            "step": e.step,
            "compute": e.compute,
            "bubble": e.bubble,
            "exposed_communication": e.exposed,
        },
    }
