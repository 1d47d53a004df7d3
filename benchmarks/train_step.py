#!/usr/bin/env python3
"""A training step of a HELM model against its Euclidean twin: time, memory, throughput.

Both models take the same flags and take turns in one process, in Megatron's own schedule with its
gradient buffers and optimizer.

    python benchmarks/train_step.py --shape helm-d-6x384 --seq-length 1024 --micro-batch-size 1
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from measure import add_output, report
from models import add_steps, compare, ratio
from shapes import add_shape, arguments

# TFLOP/s of dense bf16 products, by the name of the device.
PEAK = {"H100": 989.4, "H200": 989.4, "B200": 2250.0, "A100": 312.0}


def peak_flops(tflops: float | None) -> float | None:
    """Of the device in bf16, if given or known."""
    if tflops is None and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        tflops = next((t for known, t in PEAK.items() if known in name), None)
    return None if tflops is None else tflops * 1e12


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
    table.append(
        {
            "model": "ratio",
            "step, ms": f"{ratio(results, 'step', 'wall'):.3f}",
            "CPU time, ms": f"{ratio(results, 'step', 'cpu'):.3f}",
            "forward, ms": f"{ratio(results, 'forward', 'wall'):.3f}",
            "tokens/s": f"{1 / ratio(results, 'step', 'wall'):.3f}",
            "TFLOP/s": None,
            "MFU": None,
            "peak memory, MB": f"{ratio(results, 'bytes'):.3f}",
            "parameters, M": f"{ratio(results, 'parameters'):.3f}",
        }
    )
    return table


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shape(parser)
    add_steps(parser)
    parser.add_argument("--peak-tflops", type=float, help="of the device, for its utilization")
    add_output(parser)
    options, changes = arguments(parser)
    results = compare(options, changes)
    report(rows(results, peak_flops(options.peak_tflops)), options.output, results)


if __name__ == "__main__":
    sys.exit(main())
