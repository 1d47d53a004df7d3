#!/usr/bin/env python3
"""HELM against its Euclidean twin as a model grows: in the sequence, in experts, over processes.

    python benchmarks/scaling.py sequence --lengths 512 1024 2048 4096 8192
    python benchmarks/scaling.py experts --experts 4 8 16 32
    python benchmarks/scaling.py bytes

`sequence` and `experts` time training steps of a shallow model with a small vocabulary, so that the
layers make the time. `bytes` counts what a step sends, in processes that talk over gloo.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from typing import Any

from measure import add_output, report
from models import add_steps, compare, ratio
from shapes import GEOMETRIES, SHAPES, add_shape, arguments

SHALLOW = "--num-layers 2 --vocab-size 1024 --micro-batch-size 1".split()
# Layout of two processes: the group whose bytes it costs, shape and flags.
LAYOUTS = {
    "TP": ("tp", "helm-d-6x384", "--tensor-model-parallel-size 2"),
    "TP + SP": ("tp", "helm-d-6x384", "--tensor-model-parallel-size 2 --sequence-parallel"),
    "PP": ("pp", "helm-d-6x384", "--pipeline-model-parallel-size 2"),
    "EP": (
        "ep",
        "mice-120m",
        "--expert-model-parallel-size 2 --moe-router-force-load-balancing",
    ),
}


def by_length(options: Namespace, changes: list[str]) -> list[dict[str, Any]]:
    """Training steps at every length of the sequence: `--steps` of the longest, of others as many
    as take about that time, for short steps vary more.
    """
    results = []
    for length in options.lengths:
        steps = options.steps * max(options.lengths) // length
        flags = [*SHALLOW, "--seq-length", str(length), *changes]
        own = Namespace(**vars(options) | {"steps": steps})
        results.append(_compared(own, "sequence", length, flags))
    return results


def by_experts(options: Namespace, changes: list[str]) -> list[dict[str, Any]]:
    """Training steps of a layer with every number of experts, of which as many are chosen."""
    options.shape = options.shape if options.shape.startswith("mice") else "mice-120m"
    own = [*SHALLOW, *"--moe-layer-freq [0,1] --seq-length 1024".split()]
    return [
        _compared(options, "experts", count, [*own, "--num-experts", str(count), *changes])
        for count in options.experts
    ]


def _compared(options: Namespace, name: str, value: int, flags: list[str]) -> dict[str, Any]:
    print(f"{name} {value} ...", flush=True)
    return {name: value, **compare(options, flags)}


def compared_rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table of `by_length` or `by_experts`."""
    table = []
    for result in results:
        name, value = next(iter(result.items()))
        row = {name: value}
        for model in GEOMETRIES:
            row[f"{model} step, ms"] = f"{1e3 * result[model]['step']['wall']:.1f}"
        row["step: ratio"] = f"{ratio(result, 'step', 'wall'):.3f}"
        row["CPU time: ratio"] = f"{ratio(result, 'step', 'cpu'):.3f}"
        row["forward: ratio"] = f"{ratio(result, 'forward', 'wall'):.3f}"
        row["peak memory: ratio"] = f"{ratio(result, 'bytes'):.3f}"
        table.append(row)
    return table


def by_layout(options: Namespace, changes: list[str]) -> list[dict[str, Any]]:
    """Bytes of a step of every layout of two processes, by collective of the layout's own group."""
    from traffic import sent_in_a_step

    own = "--vocab-size 8192 --micro-batch-size 1".split()
    results = []
    for shape in SHAPES:
        layouts = [name for name in options.layouts if LAYOUTS[name][1] == shape]
        if not layouts:
            continue
        print(f"{', '.join(layouts)} ...", flush=True)
        cases = [
            (model, [*own, *LAYOUTS[layout][2].split(), *changes])
            for layout in layouts
            for model in GEOMETRIES
        ]
        chosen = Namespace(**vars(options) | {"shape": shape})
        sent = sent_in_a_step(chosen, cases, world=2)
        for i, layout in enumerate(layouts):
            counted = dict(zip(GEOMETRIES, sent[2 * i : 2 * i + 2], strict=True))
            results.append({"layout": layout, "group": LAYOUTS[layout][0], "bytes": counted})
    return results


def layout_rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table of `by_layout`."""
    table = []
    for result in results:
        counted = [
            {k.split(", ")[0]: n for k, n in one.items() if k.endswith(f", {result['group']}")}
            for one in result["bytes"].values()
        ]
        everything = {k: sum(one.get(k, 0) for one in counted) for k in counted[0] | counted[1]}
        totals = [sum(one.values()) for one in counted]
        for collective in [*sorted(everything), "all"]:
            sizes = totals if collective == "all" else [c.get(collective, 0) for c in counted]
            row = {"layout": result["layout"], "collective": collective}
            for model, size in zip(GEOMETRIES, sizes, strict=True):
                row[f"{model}, MB"] = f"{size / 1e6:.3f}"
            row["ratio"] = f"{sizes[0] / sizes[1]:.4f}" if sizes[1] else "new"
            table.append(row)
    return table


# What is measured, and its table.
MEASURES = {
    "sequence": (by_length, compared_rows),
    "experts": (by_experts, compared_rows),
    "bytes": (by_layout, layout_rows),
}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measure", choices=MEASURES)
    add_shape(parser)
    add_steps(parser, steps=5)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--experts", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--layouts", choices=LAYOUTS, nargs="+", default=list(LAYOUTS))
    add_output(parser)
    options, changes = arguments(parser)
    measure, table = MEASURES[options.measure]
    results = measure(options, changes)
    report(table(results), options.output, results)


if __name__ == "__main__":
    main()
