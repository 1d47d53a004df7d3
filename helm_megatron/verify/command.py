"""The command: compare a run's layout with one process, and say what differs."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.training.arguments import parse_args, validate_args

from helm_megatron.checks import (
    ArgumentError,
    check_args,
    check_values,
    flag_of,
    megatrons_refusals,
)
from helm_megatron.errors import HelmError
from helm_megatron.pretrain import add_args
from helm_megatron.process_groups import process_groups
from helm_megatron.verify import shrink
from helm_megatron.verify.compare import compare, write_reference
from helm_megatron.verify.layouts import is_first, job
from helm_megatron.verify.result import (
    BF16,
    FP32,
    TF32,
    Comparison,
    Difference,
    Run,
    Tolerances,
    worst_first,
)

SHOWN = 10


def main() -> int:
    """Compare; returns the exit code: 0 the same model, 1 a difference, 2 flags that cannot be."""
    logging.getLogger("megatron").setLevel(logging.ERROR)  # it lists every parameter
    try:
        layout, reference, directory = settings()
    except HelmError as error:
        if is_first():
            print(f"verify: error: {error}", file=sys.stderr)
        return 2
    say(description(layout))
    with temporary(directory) as path:
        count = shrink.microbatches(layout)
        one = None
        if is_first():
            with process_groups(reference):
                one = write_reference(job(reference, count, layout.from_scratch), path)
            say("verify: one process has run; now the layout")
        with process_groups(layout):
            run, path = share((one, path))
            if not path.is_dir():
                raise SystemExit(
                    f"verify: error: {path} is not there on every node; pass "
                    "--verify-directory on a file system that all nodes share"
                )
            found: list[Any] = [None] * dist.get_world_size()
            mine = compare(job(layout, count, layout.from_scratch), path)
            dist.all_gather_object(found, mine)
    good = report(run, found, tolerances(layout))
    say(f"verify: {'the layout computes the same model' if good else 'THE LAYOUT DIFFERS'}")
    return 0 if good else 1


def settings() -> tuple[Namespace, Namespace, Path | None]:
    """Flags of the layout and of one process, both validated, and where checkpoints go.

    Raises:
        ArgumentError: the flags cannot work.
    """
    with megatrons_refusals():
        args = parse_args(add_verify_args)
    return (*prepared(args), args.verify_directory)


def prepared(args: Namespace) -> tuple[Namespace, Namespace]:
    """The layout's and one process's flags, of those parsed.

    Raises:
        ArgumentError: the flags cannot work.
    """
    with megatrons_refusals():
        check_values(args)
        args.mock_data, args.data_path = True, None  # batches are drawn; the run's may be elsewhere
        check_args(args)
        for name in ("use_megatron_fsdp", "use_torch_fsdp2", "use_checkpoint_args", "yaml_cfg"):
            if getattr(args, name, None):
                raise ArgumentError(f"{flag_of(name)}: not verified; drop the flag")
        layout = shrink.prepare(args, args.verify_full_size, args.verify_low_precision)
        if not args.verify_low_precision:
            multiply_in_fp32()
        reference = shrink.one_process(layout)
        with contextlib.redirect_stdout(io.StringIO()):  # what it has set
            for each in (layout, reference):
                validate_args(each)
                check_args(each)
    return layout, reference


def multiply_in_fp32() -> None:
    """Let no library round the factors of fp32 products to TF32, whatever the image says.

    Before CUDA starts: its libraries, Transformer Engine's products too, read their variable then.
    """
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    os.environ["TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"] = "0"  # NVIDIA's images set it to 1
    torch.set_float32_matmul_precision("highest")


def add_verify_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The flags of `pretrain_helm.py`, and four of this command's own."""
    add_args(parser)
    group = parser.add_argument_group("verify", "one layout against one process")
    group.add_argument(
        "--from-scratch",
        action="store_true",
        help="Start both from their initial values, and compare these too, then 40 steps of "
        "training. By default the layout starts from the weights of the one process, moved at "
        "random.",
    )
    group.add_argument(
        "--verify-full-size",
        action="store_true",
        help="Keep layers, widths, sequence length and micro-batch size; one process must hold "
        "the whole model. By default they shrink, in proportion, with every kind of layer kept.",
    )
    group.add_argument(
        "--verify-low-precision",
        action="store_true",
        help="Keep --bf16, --fp16 and --fp8-format. By default all is fp32: low precision hides "
        "what is small.",
    )
    group.add_argument(
        "--verify-directory",
        type=Path,
        default=None,
        help="Where temporary checkpoints go (default: the system's temporary directory); with "
        "several nodes one that they share.",
    )
    return parser


@contextlib.contextmanager
def temporary(parent: Path | None) -> Any:
    """A directory of rank 0 that goes at the end; other ranks are told of it later."""
    if not is_first():
        yield Path()
        return
    with tempfile.TemporaryDirectory(prefix="helm-verify-", dir=parent) as name:
        yield Path(name)


def share(value: tuple[Any, Path]) -> tuple[Run, Path]:
    """Rank 0's value on every rank."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def tolerances(args: Namespace) -> Tolerances:
    """By the precision that the flags leave."""
    if args.bf16 or args.fp16:
        return BF16
    return FP32 if args.transformer_impl == "local" else TF32


def report(one: Run, found: list[Comparison], t: Tolerances) -> bool:
    """Print a line for every check, and the tensors that differ; whether all is well."""
    losses = [Difference("", abs(f.run.loss - one.loss), abs(one.loss)) for f in found]
    steps = [
        Difference(f"step {i + 1}", abs(got - expected), abs(expected))
        for f in found
        for i, pair in enumerate(zip(f.run.training, one.training, strict=True))
        for got, expected in zip(*pair, strict=True)
    ]
    gradients = [d for f in found for d in f.gradients]
    trained = [d for f in found for d in f.trained]
    initial = [d for f in found for d in f.initial]
    good = []
    if initial:
        what = f"initial values of {names(initial)} tensors"
        good.append(check(what, initial, 0.0, sys.float_info.min))
    good += [
        check("loss", losses, t.loss, 0.0),
        check(
            f"gradients of {names(gradients)} parameters", gradients, t.gradient, t.gradient_floor
        ),
        check(f"loss and gradient norm of {len(one.training)} steps", steps, t.training, 0.0),
        check(f"tensors after {len(one.training)} steps", trained, t.trained, t.trained_floor),
    ]
    idle = names(d for d in gradients if d.scale == 0)
    if idle:
        say(f"  note      {idle} of these gradients are zero (experts that no token chose?)")
    return all(good)


def check(what: str, differences: list[Difference], limit: float, floor: float) -> bool:
    """One line: verdict, largest relative difference, its limit, its tensor."""
    pairs = worst_first(differences, floor)
    value, where = pairs[0]
    good = value <= limit
    word = "ok      " if good else "MISMATCH"
    say(f"  {word}  {what}: {value:.1e} (at most {limit:.0e}) {where.name}".rstrip())
    seen = {where.name}
    for value, where in pairs:
        if not value <= limit and where.name not in seen and len(seen) < SHOWN:
            seen.add(where.name)
            say(f"            {value:.1e} {where.name}")
    return good


def names(differences: Iterable[Difference]) -> int:
    """How many tensors there are over all ranks."""
    return len({d.name for d in differences})


def description(args: Namespace) -> str:
    """Two lines: the model that is run, and the layout."""
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
    experts = f", {args.num_experts} experts" if args.num_experts else ""
    size = "full size:" if args.verify_full_size else "shrunk to"
    sequence = " with sequence parallelism" if args.sequence_parallel else ""
    virtual = args.virtual_pipeline_model_parallel_size
    return (
        f"verify: {size} {args.num_layers} layers, width {args.hidden_size}, "
        f"{args.num_attention_heads} heads{experts}, {args.seq_length} tokens; {precision}, "
        "no dropout\n"
        f"verify: {args.world_size} processes: tensor {args.tensor_model_parallel_size}{sequence}, "
        f"pipeline {args.pipeline_model_parallel_size}{f' x {virtual}' if virtual else ''}, "
        f"expert {args.expert_model_parallel_size} (tensor {args.expert_tensor_parallel_size}), "
        f"data {args.data_parallel_size}"
    )


def say(text: str) -> None:
    """Print on rank 0."""
    if is_first():
        print(text, flush=True)
