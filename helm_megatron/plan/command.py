"""The subcommand `helm-megatron plan`."""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from helm_megatron.checks import ArgumentError, flag_of
from helm_megatron.plan.cluster import Cluster
from helm_megatron.plan.shell import read

if TYPE_CHECKING:
    from helm_megatron.plan.layout import Layout

# The layouts that recipes have; another number of GPUs borrows the model of the first.
RECIPE_GPUS = (8, 64, 512)
MOST_GPUS = 1_000_000
# What Layout has no field for.
_UNEVEN = (
    "pipeline_model_parallel_layout",
    "decoder_first_pipeline_num_layers",
    "decoder_last_pipeline_num_layers",
)

# Fields of the cluster: flag, type and meaning.
_OPTIONS: dict[str, tuple[str, type, str]] = {
    "gpus_per_node": ("--gpus-per-node", int, "GPUs of a node"),
    "memory": ("--gpu-memory", float, "memory of a GPU, GB"),
    "intra_node_bandwidth": (
        "--intra-node-bandwidth",
        float,
        "GB/s of a GPU, one way, within a node",
    ),
    "inter_node_bandwidth": (
        "--inter-node-bandwidth",
        float,
        "GB/s of a GPU, one way, between nodes",
    ),
    "tflops": ("--flops", float, "TFLOP/s that a GPU reaches in matrix products"),
    "margin": ("--memory-margin", float, "part of the memory left to CUDA, NCCL and fragments"),
}


def main() -> int:
    """The command line; returns its exit code, 2 where its options cannot work."""
    parser = argparse.ArgumentParser(
        description="Estimate memory, communication and step time of every layout of a recipe on "
        "a cluster, fastest first. Needs no GPU. The recipe's variables (GEOMETRY, SHAPE) are "
        "read from the environment; docs/plan.md says how exact each number is.",
    )
    default = Cluster(gpus=8)
    parser.add_argument("recipe", type=Path, help="a shell file that sets MODEL_ARGS")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--gpus", type=int, help="GPUs of the whole cluster")
    what.add_argument(
        "--match",
        choices=("parameters", "flops"),
        help="instead: the widths of the other geometry's model that has as many",
    )
    parser.add_argument("--multiple", type=int, default=16, help="of --match's widths (default 16)")
    for name, (flag, kind, unit) in _OPTIONS.items():
        parser.add_argument(
            flag,
            dest=name,
            type=kind,
            default=getattr(default, name),
            metavar="N",
            help=f"{unit} (default %(default)s)",
        )
    parser.add_argument("--top", type=int, default=10, help="layouts shown (default 10)")
    parser.add_argument("--json", action="store_true", help="every layout, as JSON")
    try:
        options = parser.parse_args()
        return run(options) if options.match is None else match_twin(options)
    except ArgumentError as error:
        print(f"helm-megatron: error: {error}", file=sys.stderr)
        return 2


def match_twin(options: argparse.Namespace) -> int:
    """Print the twin that costs the same; returns 0.

    Raises:
        ArgumentError: the recipe cannot be, or has no such twin.
    """
    if options.multiple < 1:
        raise ArgumentError(f"--multiple {options.multiple}: must be 1 or more")
    flags = read(options.recipe, {"GPUS": str(RECIPE_GPUS[0])})
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from helm_megatron import megatron_patches

    megatron_patches.apply()
    from helm_megatron.plan.match import as_json, as_text, match

    logging.disable(logging.WARNING)
    found = match(flags, options.match, options.multiple)
    print(as_json(found) if options.json else as_text(found, options.match))
    return 0


def run(options: argparse.Namespace) -> int:
    """Print the plan; returns 0, or 1 where no layout fits.

    Raises:
        ArgumentError: the recipe or the cluster cannot be.
    """
    cluster = _cluster(options)
    if options.top < 1:
        raise ArgumentError(f"--top {options.top}: must be 1 or more")
    known = cluster.gpus in RECIPE_GPUS
    flags = read(options.recipe, {"GPUS": str(cluster.gpus if known else RECIPE_GPUS[0])})
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # nothing is computed: the same plan everywhere
    from helm_megatron import megatron_patches

    megatron_patches.apply()
    from helm_megatron.plan import report
    from helm_megatron.plan.recipe import parse
    from helm_megatron.plan.search import search

    logging.disable(logging.WARNING)  # of Megatron, about a model that will not run
    args = parse(flags)
    _check_planned(args, options.recipe)
    own, error = _own(args, cluster) if known else (None, None)
    plan = search(args, own, cluster, _progress)
    plan.own_error = plan.own_error or error
    if options.json:
        print(report.as_json(args, cluster, plan))
    else:
        print(report.as_text(args, cluster, plan, options.recipe, options.top))
    return 0 if plan.fitting else 1


def _check_planned(args: argparse.Namespace, recipe: Path) -> None:
    for name in _UNEVEN:
        if getattr(args, name):
            raise ArgumentError(f"{recipe}: {flag_of(name)}: plan divides layers evenly")
    if args.num_experts and args.moe_token_dispatcher_type != "alltoall":
        raise ArgumentError(f"{recipe}: plan needs --moe-token-dispatcher-type alltoall")
    if args.global_batch_size is None:
        raise ArgumentError(f"{recipe}: plan needs --global-batch-size")


def _cluster(options: argparse.Namespace) -> Cluster:
    """The cluster that the options describe."""
    values = {name: getattr(options, name) for name in ("gpus", *_OPTIONS)}
    for name, value in values.items():
        flag = "--gpus" if name == "gpus" else _OPTIONS[name][0]
        if name == "margin":
            if not 0 <= value < 1:
                raise ArgumentError(f"{flag} {value}: must be from 0 to below 1")
        elif not 0 < value < math.inf:
            raise ArgumentError(f"{flag} {value}: must be positive and finite")
        elif name.startswith("gpus") and value > MOST_GPUS:
            raise ArgumentError(f"{flag} {value}: at most {MOST_GPUS:,}")
    return Cluster(**values)


def _own(args: argparse.Namespace, cluster: Cluster) -> tuple[Layout | None, str | None]:
    """The recipe's own layout, or why the cluster cannot have it."""
    from helm_megatron.plan.layout import Layout
    from helm_megatron.plan.recipe import validate

    try:
        return Layout.of(validate(args, cluster.gpus)), None
    except ArgumentError as error:
        return None, str(error)


def _progress(done: int, of: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done + 1 == of else ""
        print(f"\rplan: layout {done + 1} of {of}", end=end, file=sys.stderr, flush=True)
