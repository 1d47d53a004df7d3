"""Models to measure: the recipes in examples/, with any of pretrain_helm.py's flags changed."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helm_megatron import megatron_patches

warnings.filterwarnings("ignore", module="megatron")
megatron_patches.apply()

import torch  # noqa: E402

from helm_megatron.errors import HelmError  # noqa: E402
from helm_megatron.plan import shell  # noqa: E402
from helm_megatron.plan.recipe import parse, validate  # noqa: E402
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
DTYPES: dict[str, dict[str, Any]] = {
    "fp32": {"bf16": False, "fp16": False},
    "bf16": {"bf16": True, "fp16": False},
}


def add_shape(parser: argparse.ArgumentParser) -> None:
    """The flags that name a model; all others are those of pretrain_helm.py."""
    parser.add_argument("--shape", choices=SHAPES, default="helm-d-6x384")
    default = "bf16" if torch.cuda.is_available() else "fp32"
    parser.add_argument("--dtype", choices=DTYPES, default=default)
    parser.epilog = "Further flags are those of pretrain_helm.py, and override the shape's."


def arguments(parser: argparse.ArgumentParser) -> tuple[Namespace, list[str]]:
    """The benchmark's options, and the flags left for the model; sets the number of threads."""
    options, changes = parser.parse_known_args()
    logging.getLogger("megatron").setLevel(logging.ERROR)  # it lists every parameter
    if options.threads:
        torch.set_num_threads(options.threads)
    return options, changes


def model_args(options: Namespace, name: str, changes: Sequence[str], world: int = 1) -> Namespace:
    """Validated flags of the model `name` of GEOMETRIES, of the options of `add_shape`.

    Ends the program if they make no model.
    """
    recipe, own = SHAPES[options.shape]
    try:
        flags = [*shell.read(EXAMPLES / recipe), *own.split(), *changes]
        args = parse([*flags, "--geometry", GEOMETRIES[name]])
        if world == 1:
            vars(args).update({k: v for k, v in ONE_PROCESS.items() if hasattr(args, k)})
        vars(args).update(DTYPES[options.dtype], overlap_grad_reduce=False)
        args.overlap_param_gather = False
        args.max_position_embeddings = max(args.max_position_embeddings, args.seq_length)
        args.global_batch_size = args.micro_batch_size * world
        multiple = args.make_vocab_size_divisible_by * args.tensor_model_parallel_size
        args.vocab_size = args.padded_vocab_size = -(-args.vocab_size // multiple) * multiple
        return validate(args, world)
    except HelmError as error:
        sys.exit(f"error: {error}")
