#!/usr/bin/env python3
"""A training step of a HELM model against its Euclidean twin: time, memory, throughput.

Both models take the same flags and take turns in one process, in Megatron's own schedule with its
gradient buffers and optimizer.

    python benchmarks/train_step.py --shape helm-d-6x384 --seq-length 1024 --micro-batch-size 1
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from measure import add_output, in_turns, peak_bytes, report, storage_bytes
from shapes import GEOMETRIES, add_shape, flags_of, flops, parsed, validated

from helm_megatron.checks import ArgumentError
from helm_megatron.verify.layouts import job, process_groups

# Dense bf16, by the name of the device.
PEAK_TFLOPS = {"H100": 989.4, "H200": 989.4, "B200": 2250.0, "A100": 312.0}


class Model:
    """One model with its optimizer: what is timed."""

    def __init__(self, args: Namespace, count: int) -> None:
        self.args = args
        self.job = job(args, count)
        self.optimizer = self.job.make_optimizer()
        [self.chunk] = self.job.chunks
        shape = args.micro_batch_size, args.seq_length
        device = torch.cuda.current_device()
        self.tokens = torch.randint(args.padded_vocab_size, shape, device=device)
        self.positions = torch.arange(args.seq_length, device=device).expand(shape)

    def step(self) -> None:
        """Forward, backward and optimizer."""
        self.optimizer.zero_grad()
        self.job.loss_of_step(0)
        self.optimizer.step()

    @torch.no_grad()
    def forward(self) -> None:
        """The losses of one micro-batch."""
        self.chunk(self.tokens, self.positions, None, labels=self.tokens)

    def peak(self) -> int:
        """Bytes in use at the worst moment of a step, with what is kept between steps."""
        return peak_bytes(self.step) + storage_bytes(self._kept())

    def _kept(self) -> Iterator[Any]:
        for buffer in (*self.chunk.buffers, *self.chunk.expert_parallel_buffers):
            yield from (buffer.param_data, buffer.grad_data)
        yield from self.chunk.parameters()
        for one in getattr(self.optimizer, "chained_optimizers", [self.optimizer]):
            for group in one.optimizer.param_groups:
                yield from group["params"]
            for state in one.optimizer.state.values():
                yield from state.values()


def peak_flops(tflops: float | None) -> float | None:
    """Of the device in bf16, if given or known."""
    if tflops is None and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        tflops = next((t for known, t in PEAK_TFLOPS.items() if known in name), None)
    return None if tflops is None else tflops * 1e12


def measure(options: Namespace, changes: list[str]) -> dict[str, dict[str, Any]]:
    """By model: seconds and CPU seconds of a step and of forward alone, bytes, FLOPs."""
    flags = {n: flags_of(options.shape, g, changes) for n, g in GEOMETRIES.items()}
    args = {name: parsed(f, options.dtype) for name, f in flags.items()}
    work = {name: flops(a) * options.micro_batches for name, a in args.items()}
    ready = {name: validated(a) for name, a in args.items()}
    with process_groups(ready["HELM"]):
        models = {name: Model(a, options.micro_batches) for name, a in ready.items()}
        steps = in_turns({n: m.step for n, m in models.items()}, options.steps, options.warm_up)
        forwards = in_turns(
            {n: m.forward for n, m in models.items()}, options.steps, options.warm_up
        )
        results = {
            name: {
                "step": asdict(steps[name]),
                "forward": asdict(forwards[name]),
                "bytes": model.peak(),
                "flops": work[name],
                "tokens": options.micro_batches * model.tokens.numel(),
                "parameters": sum(p.numel() for p in model.chunk.parameters()),
            }
            for name, model in models.items()
        }
        del models
        gc.collect()
    return results


def rows(results: dict[str, dict[str, Any]], peak: float | None) -> list[dict[str, Any]]:
    """The table: one row for each model, then HELM's numbers divided by its twin's."""
    table = []
    for name, result in results.items():
        seconds = result["step"]["wall"]
        table.append(
            {
                "model": name,
                "step, ms": f"{1e3 * seconds:.1f}",
                "CPU time, ms": f"{1e3 * result['step']['cpu']:.1f}",
                "forward, ms": f"{1e3 * result['forward']['wall']:.1f}",
                "tokens/s": f"{result['tokens'] / seconds:,.0f}",
                "TFLOP/s": f"{result['flops'] / seconds / 1e12:.3g}",
                "MFU": peak and f"{100 * result['flops'] / seconds / peak:.1f}%",
                "peak memory, MB": f"{result['bytes'] / 1e6:.1f}",
                "parameters, M": f"{result['parameters'] / 1e6:.1f}",
            }
        )
    helm, twin = results.values()

    def ratio(*keys: str) -> str:
        a, b = helm, twin
        for key in keys:
            a, b = a[key], b[key]
        return f"{a / b:.3f}"

    table.append(
        {
            "model": "ratio",
            "step, ms": ratio("step", "wall"),
            "CPU time, ms": ratio("step", "cpu"),
            "forward, ms": ratio("forward", "wall"),
            "tokens/s": f"{twin['step']['wall'] / helm['step']['wall']:.3f}",
            "TFLOP/s": None,
            "MFU": None,
            "peak memory, MB": ratio("bytes"),
            "parameters, M": ratio("parameters"),
        }
    )
    return table


def main() -> int:
    """Measure, print a table; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shape(parser)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each model")
    parser.add_argument("--warm-up", type=int, default=2, help="steps of each before")
    parser.add_argument("--micro-batches", type=int, default=1, help="in a step")
    parser.add_argument("--peak-tflops", type=float, help="of the device, for its utilization")
    add_output(parser)
    options, changes = parser.parse_known_args()
    logging.getLogger("megatron").setLevel(logging.ERROR)  # it lists every parameter
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        results = measure(options, changes)
    except ArgumentError as error:
        print(f"train_step.py: error: {error}", file=sys.stderr)
        return 2
    report(rows(results, peak_flops(options.peak_tflops)), options.output, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
