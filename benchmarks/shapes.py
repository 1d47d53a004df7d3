"""Models to measure: the recipes in examples/, with any of pretrain_helm.py's flags changed."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from helm_megatron import platform

platform.setup()

import torch  # noqa: E402

from helm_megatron.plan import shell  # noqa: E402
from helm_megatron.plan.layout import Layout  # noqa: E402
from helm_megatron.plan.parts import PartsOf  # noqa: E402
from helm_megatron.plan.recipe import parse, validate  # noqa: E402
from helm_megatron.plan.stages import kinds  # noqa: E402
from helm_megatron.verify.shrink import ONE_PROCESS  # noqa: E402

EXAMPLES = Path(__file__).parents[1] / "examples"
# Recipe, and what is changed in it.
SHAPES = {
    "helm-d-6x384": ("helm_d_115m.sh", ""),
    "helm-d-16x768": (
        "helm_d_115m.sh",
        "--num-layers 16 --num-attention-heads 12 --hidden-size 768 --ffn-hidden-size 3072",
    ),
    "mice-120m": ("helm_mice_120m.sh", ""),
    "mice-1b": ("helm_mice_1b.sh", ""),
}
GEOMETRIES = {"HELM": "lorentz", "Euclidean": "euclidean"}
LOW_PRECISION = {"fp32": {}, "bf16": {"bf16": True}}


def add_shape(parser: argparse.ArgumentParser) -> None:
    """The flags that name a model; all others are those of pretrain_helm.py."""
    parser.add_argument("--shape", choices=SHAPES, default="helm-d-6x384")
    default = "bf16" if torch.cuda.is_available() else "fp32"
    parser.add_argument("--dtype", choices=LOW_PRECISION, default=default)
    parser.epilog = "Further flags are those of pretrain_helm.py, and override the shape's."


def flags_of(shape: str, geometry: str, changes: Sequence[str]) -> list[str]:
    """Flags of pretrain_helm.py for a model of this shape and geometry."""
    recipe, own = SHAPES[shape]
    return [*shell.read(EXAMPLES / recipe), *own.split(), *changes, "--geometry", geometry]


def parsed(flags: Sequence[str], dtype: str) -> Namespace:
    """The flags for one process, parsed but not validated.

    Raises:
        ArgumentError: the flags are no model's.
    """
    args = parse(flags)
    vars(args).update({k: v for k, v in ONE_PROCESS.items() if hasattr(args, k)})
    vars(args).update({"bf16": False, "fp16": False, **LOW_PRECISION[dtype]})
    args.max_position_embeddings = max(args.max_position_embeddings, args.seq_length)
    args.global_batch_size = args.micro_batch_size
    multiple = args.make_vocab_size_divisible_by
    args.vocab_size = args.padded_vocab_size = -(-args.vocab_size // multiple) * multiple
    return args


def validated(args: Namespace) -> Namespace:
    """The flags as the model is built from them."""
    return validate(args, 1)


def flops(args: Namespace) -> float:
    """Of matrix products, forward and backward, in one micro-batch; attention at its causal half.

    To be called outside of process groups.
    """
    ready = validated(args)
    parts = PartsOf(args)(Layout.of(ready))
    names = ["embedding", *kinds(ready), "head"]
    return sum(parts[n].forward.flops + parts[n].backward.flops for n in names)
