#!/usr/bin/env python
"""Embed a tree in hyperbolic and in Euclidean space of the same dimension, and compare.

WordNet's mammals become points of the hyperboloid, trained with Riemannian Adam, and points of
Euclidean space, trained with Adam, to have distances in proportion to those in the tree. Both see
the same pairs in the same order, learn a scale beside the points, and try the same learning rates;
of each the rate counts that gives the lowest mean distortion over the seeds.

Example:
    python examples/embed_mammals.py --output-dir mammals

writes distortion.png, table.md and runs.json, which has every rate and seed.
"""

import argparse
import json
import math
import statistics
import sys
from itertools import product
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch import Tensor
from tqdm import trange

from helm_megatron.analysis.words import Words, WordsError, read_words
from helm_megatron.errors import HelmError
from helm_megatron.geometry import lorentz
from helm_megatron.optim.riemannian_adam import RiemannianAdam

MAMMALS = Path(__file__).parent / "data" / "mammals.tsv"
GEOMETRIES = ("hyperbolic", "Euclidean")
# Both start small, where hyperbolic space is nearly Euclidean: points that begin far apart in it
# have no way to change places.
START = 0.01
START_SCALE = 0.1
SCALE_RATE = 0.01


def tree_distances(words: Words) -> Tensor:
    """Number of edges between every two words `[n, n]`.

    Raises:
        WordsError: the words are no tree.
    """
    n = len(words.names)
    if len(words.edges) != n - 1:
        raise WordsError(f"not a tree: {n} words need {n - 1} parents, not {len(words.edges)}")
    distances = torch.full((n, n), torch.inf, dtype=torch.double)
    reached = torch.eye(n, dtype=torch.bool)
    neighbors = torch.zeros(n, n)
    child, parent = torch.tensor(words.edges).T
    neighbors[child, parent] = neighbors[parent, child] = 1
    distances[reached] = 0
    for edges in range(1, n):
        new = (reached.float() @ neighbors > 0) & ~reached
        if not new.any():
            break
        distances[new] = edges
        reached |= new
    if not reached.all():
        raise WordsError("not a tree: some words are not connected with the others")
    return distances


def distance(geometry: str, x: Tensor, y: Tensor) -> Tensor:
    """Distances of the points x and y `[..., d]`, `[...]`; of hyperbolic ones with c = 1."""
    if geometry == "hyperbolic":
        return lorentz.distance(x, y, 1.0).squeeze(-1)
    return torch.linalg.vector_norm(x - y, dim=-1)


def train(
    geometry: str, dimension: int, target: Tensor, args: argparse.Namespace
) -> tuple[Tensor, Tensor]:
    """Points `[rates, seeds, n, d]` and scales `[rates, seeds]`; all runs learn side by side."""
    n = len(target)
    seeds = [torch.Generator().manual_seed(seed) for seed in range(args.seeds)]
    start = START * torch.stack([torch.randn(n, dimension, generator=seed) for seed in seeds])
    tables = [torch.nn.Parameter(start.double()) for _ in args.rates]
    scale = torch.full((len(args.rates), args.seeds), math.log(START_SCALE), dtype=torch.double)
    scales = torch.nn.Parameter(scale)
    groups = [{"params": [x], "lr": rate} for x, rate in zip(tables, args.rates, strict=True)]
    adam = RiemannianAdam if geometry == "hyperbolic" else torch.optim.Adam
    optimizers = [adam(groups), torch.optim.Adam([scales], lr=SCALE_RATE)]
    schedules = [
        torch.optim.lr_scheduler.CosineAnnealingLR(each, args.steps) for each in optimizers
    ]
    random = torch.Generator().manual_seed(args.seeds)
    for _ in trange(args.steps, desc=f"{geometry}, dimension {dimension}", mininterval=1):
        i = torch.randint(n, (args.pairs,), generator=random)
        j = (i + torch.randint(1, n, (args.pairs,), generator=random)) % n
        points = torch.stack(tables)
        found = distance(geometry, points[..., i, :], points[..., j, :])
        ratio = found / (scales.exp().unsqueeze(-1) * target[i, j])
        for optimizer in optimizers:
            optimizer.zero_grad()
        (ratio - 1).square().mean(-1).sum().backward()
        for each in [*optimizers, *schedules]:
            each.step()
    return torch.stack(tables).detach(), scales.detach().exp()


def quality(geometry: str, x: Tensor, scale: Tensor, target: Tensor) -> dict[str, float]:
    """Mean and worst-case distortion over all pairs, and mean average precision of the neighbors.

    As Sala et al. (arXiv:1804.03329) define them: mean of |d / (scale * tree distance) - 1|;
    largest by smallest ratio of distances; precision of ranking neighbors in the tree first.
    """
    found = torch.stack([distance(geometry, point.expand_as(x), x) for point in x])
    above = torch.triu(torch.ones_like(found, dtype=torch.bool), 1)
    ratio = (found / (scale * target))[above]
    found.fill_diagonal_(torch.inf)
    near = target.gather(1, found.argsort(1)) == 1
    rank = torch.arange(1, len(x) + 1)
    precision = (near * near.cumsum(1) / rank).sum(1) / near.sum(1)
    return {
        "mean distortion": float((ratio - 1).abs().mean()),
        "worst-case distortion": float(ratio.max() / ratio.min()),
        "MAP": float(precision.mean()),
        "scale": float(scale),
    }


def best(results: list[dict], geometry: str, dimension: int) -> list[dict]:
    """The runs of all seeds at the rate with the lowest mean distortion."""
    mine = [r for r in results if (r["geometry"], r["dimension"]) == (geometry, dimension)]

    def loss(rate: float) -> float:
        mean = statistics.mean(r["mean distortion"] for r in mine if r["rate"] == rate)
        return math.inf if math.isnan(mean) else mean

    rate = min({r["rate"] for r in mine}, key=loss)
    return [r for r in mine if r["rate"] == rate]


def write(results: list[dict], dimensions: list[int], folder: Path) -> str:
    """Write table, plot and all results; returns the table."""
    measures = ("mean distortion", "worst-case distortion", "MAP")
    lines = [f"| dimension | geometry | rate | {' | '.join(measures)} |", "|---" * 6 + "|"]
    axes = plt.subplots(figsize=(6, 4), layout="constrained")[1]
    for geometry in GEOMETRIES:
        chosen = {d: best(results, geometry, d) for d in dimensions}
        values = {d: [r["mean distortion"] for r in runs] for d, runs in chosen.items()}
        means = [statistics.mean(v) for v in values.values()]
        ends = [[m - min(v), max(v) - m] for m, v in zip(means, values.values(), strict=True)]
        axes.errorbar(
            dimensions, means, yerr=list(zip(*ends, strict=True)), marker="o", capsize=3,
            label=geometry,
        )  # fmt: skip
        for d, runs in chosen.items():
            cells = [f"{statistics.mean(r[m] for r in runs):.4g}" for m in measures]
            lines.append(f"| {d} | {geometry} | {runs[0]['rate']:g} | {' | '.join(cells)} |")
    lines[2:] = sorted(lines[2:], key=lambda line: int(line.split()[1]))
    axes.set(xlabel="dimension", ylabel="mean distortion", xticks=dimensions, ylim=(0, None))
    axes.legend()
    axes.figure.savefig(folder / "distortion.png", dpi=100)
    table = "\n".join(lines) + "\n"
    (folder / "table.md").write_text(table)
    (folder / "runs.json").write_text(json.dumps(results, indent=1) + "\n")
    return table


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--words", type=Path, default=MAMMALS, help="a word and its parent a line")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.01, 0.03, 0.1, 0.3, 1.0])
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=1024, help="pairs a step (default: 1024)")
    args = parser.parse_args()
    if min(args.seeds, args.steps, args.pairs, *args.dimensions, *args.rates) <= 0:
        parser.error("dimensions, rates, seeds, steps and pairs must be positive")
    return args


def main() -> None:
    """Train, measure and write; a problem ends the example with one line and exit code 1."""
    args = parse_args()
    try:
        target = tree_distances(read_words(args.words))
        args.output_dir.mkdir(parents=True, exist_ok=True)
    except (HelmError, OSError) as error:
        sys.exit(f"error: {error}")
    results = []
    for dimension, geometry in product(args.dimensions, GEOMETRIES):
        points, scales = train(geometry, dimension, target, args)
        for (i, rate), seed in product(enumerate(args.rates), range(args.seeds)):
            setting = {"geometry": geometry, "dimension": dimension, "rate": rate, "seed": seed}
            results.append(setting | quality(geometry, points[i, seed], scales[i, seed], target))
    print(write(results, args.dimensions, args.output_dir), end="")


if __name__ == "__main__":
    main()
