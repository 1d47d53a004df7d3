"""Pictures of the geometry of one model, or of two side by side, as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

from helm_megatron.analysis.states import WordNorms

Draw = Callable[[Axes], None]


def save(
    path: Path, draws: Mapping[str, Draw], size: tuple[float, float] = (7, 4.5), share: bool = True
) -> Path:
    """Write a panel for each model, named where there are several.

    Args:
        draws: what draws each model's panel, by the model's name.
        size: of a panel, in inches.
        share: whether all panels have the same axes.
    """
    figure, panels = plt.subplots(
        *(1, len(draws)),
        figsize=(size[0] * len(draws), size[1]),
        layout="constrained",
        squeeze=False,
        sharex=share,
        sharey=share,
    )
    for axes, (name, draw) in zip(panels[0], draws.items(), strict=True):
        draw(axes)
        if len(draws) > 1:
            axes.set_title(name)
    figure.savefig(path, format="png", dpi=120)
    plt.close(figure)
    return path


def radius_by_frequency(axes: Axes, radius: Tensor, counts: Tensor) -> None:
    """Every token that occurs: how often, and its distance from the origin."""
    seen = counts > 0
    axes.scatter(counts[seen], radius[seen], s=4, alpha=0.3)
    axes.set_xscale("log")
    axes.set(xlabel="occurrences of the token", ylabel="distance to the origin")


def histogram(axes: Axes, values: Tensor, what: str, of: str) -> None:
    """How often values occur, with a line at zero where they have both signs."""
    axes.hist(values.numpy(), bins=60)
    if values.min() < 0 < values.max():
        axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel=what, ylabel=of)


def times_by_layer(axes: Axes, times: Sequence[Tensor]) -> None:
    """Times of the text's tokens: range from the 5th to the 95th percentile, and median."""
    axes.boxplot([t.numpy() for t in times], positions=range(len(times)), whis=(5, 95), sym="")
    axes.set(xlabel="layer (0: embedding)", ylabel="time coordinate")


def ranks_by_layer(axes: Axes, ranks: Sequence[float]) -> None:
    """The effective rank of the text's states after every layer."""
    axes.plot(range(len(ranks)), ranks, marker="o")
    axes.set_ylim(bottom=0)
    axes.set(xlabel="layer (0: embedding)", ylabel="effective rank of the states")


def experts(axes: Axes, values: Mapping[int, Tensor], label: str) -> None:
    """A value of every expert of every layer that has experts, as a colored table."""
    rows = [value.tolist() for value in values.values()]
    image = axes.imshow(rows, aspect="auto", cmap="viridis")
    axes.set_yticks(range(len(values)), [f"layer {number}" for number in values])
    axes.set_xticks(range(len(rows[0])))
    axes.figure.colorbar(image, ax=axes, label=label)
    axes.set(xlabel="expert")


def word_norms(axes: Axes, found: WordNorms) -> None:
    """The mean norm of each group's words in the last layer, with its standard error.

    In units of the first group's mean, so that models of different norms share an axis.
    """
    groups = range(len(found.names))
    values = torch.tensor([found.mean(found.layer, group) for group in groups])
    means, errors = (values / values[0, 0]).T.tolist()
    axes.errorbar(groups, means, yerr=errors, marker="o", capsize=3)
    axes.set_xticks(groups, found.names)
    axes.set(xlabel="words, generic to specific", ylabel="norm in the last layer, first group = 1")


def poincare_disk(
    axes: Axes, places: Tensor, words: Sequence[str], edges: Sequence[tuple[int, int]]
) -> None:
    """Words `[n, 2]` in the unit disk, with lines from words to their parents."""
    axes.add_patch(plt.Circle((0, 0), 1.0, fill=False, color="gray"))
    for child, parent in edges:
        axes.plot(*places[[child, parent]].T, color="lightgray", linewidth=0.8, zorder=1)
    axes.scatter(places[:, 0], places[:, 1], s=12, zorder=2)
    for (x, y), word in zip(places.tolist(), words, strict=True):
        axes.annotate(word, (x, y), fontsize=8, xytext=(3, 3), textcoords="offset points")
    # A small model's words may all lie near the middle.
    reach = min(1.02, 1.15 * places.norm(dim=-1).max().item())
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
