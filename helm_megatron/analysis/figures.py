"""Pictures of a model's geometry, as PNG files."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from helm_megatron.analysis.activations import Activations


def _save(path: Path, axes: Axes, **labels: str) -> Path:
    axes.set(**labels)
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    figure.savefig(path, format="png", dpi=120)
    plt.close(figure)
    return path


def _axes(width: float = 7, height: float = 4.5) -> Axes:
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def radius_by_frequency(path: Path, radius: Tensor, counts: Tensor) -> Path:
    """Every token that occurs: how often, and its distance from the origin."""
    axes = _axes()
    seen = counts > 0
    axes.scatter(counts[seen], radius[seen], s=4, alpha=0.3)
    axes.set_xscale("log")
    return _save(path, axes, xlabel="occurrences of the token", ylabel="distance to the origin")


def radius_histogram(path: Path, radius: Tensor) -> Path:
    """How far from the origin tokens are."""
    axes = _axes()
    axes.hist(radius, bins=60)
    return _save(path, axes, xlabel="distance to the origin", ylabel="tokens")


def times_by_layer(path: Path, times: list[Tensor]) -> Path:
    """Times of the text's tokens: range from the 5th to the 95th percentile, and median."""
    axes = _axes()
    axes.boxplot([t.numpy() for t in times], positions=range(len(times)), whis=(5, 95), sym="")
    return _save(path, axes, xlabel="layer (0: embedding)", ylabel="time coordinate")


def experts(path: Path, values: dict[int, Tensor], label: str) -> Path:
    """A value of every expert of every layer that has experts, as a colored table."""
    axes = _axes(height=1.5 + 0.4 * len(values))
    rows = [value.tolist() for value in values.values()]
    image = axes.imshow(rows, aspect="auto", cmap="viridis")
    axes.set_yticks(range(len(values)), [f"layer {number}" for number in values])
    axes.set_xticks(range(len(rows[0])))
    axes.figure.colorbar(image, label=label)
    return _save(path, axes, xlabel="expert")


def poincare_disk(
    path: Path, places: Tensor, words: list[str], edges: list[tuple[int, int]]
) -> Path:
    """Words `[n, 2]` in the unit disk, with lines from words to their parents."""
    axes = _axes(8, 8)
    axes.add_patch(plt.Circle((0, 0), 1.0, fill=False, color="gray"))
    for child, parent in edges:
        axes.plot(*places[[child, parent]].T, color="lightgray", linewidth=0.8, zorder=1)
    axes.scatter(places[:, 0], places[:, 1], s=12, zorder=2)
    for (x, y), word in zip(places.tolist(), words, strict=True):
        axes.annotate(word, (x, y), fontsize=8, xytext=(3, 3), textcoords="offset points")
    # A small model's words may all lie near the middle.
    reach = min(1.02, 1.15 * places.norm(dim=-1).max().item())
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    return _save(path, axes)


def of_activations(folder: Path, found: Activations) -> dict[str, Path]:
    """The pictures of what a text does in the model, by caption."""
    pictures = {}
    if found.times:
        pictures["Time coordinates by layer"] = times_by_layer(folder / "times.png", found.times)
    if found.curvatures:
        pictures["Curvature c of every expert"] = experts(
            folder / "curvatures.png", found.curvatures, "c"
        )
    if found.loads:
        pictures["Load of every expert"] = experts(
            folder / "expert_load.png", found.loads, "share of the choices"
        )
    return pictures
