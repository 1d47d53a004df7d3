"""Scores as a picture."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from helm_megatron.evaluation.scores import Score

CHANCE: dict[str, Any] = {"linestyle": "--", "color": "tab:orange"}
UNIGRAM: dict[str, Any] = {"linestyle": ":", "color": "tab:green"}


def draw(scores: list[Score], title: str, path: Path) -> None:
    """Write a PNG: a bar a score with its standard error; lines at chance and at unigram.

    Args:
        scores: those between 0 and 1 are shown.
    """
    shown = [score for score in scores if 0 <= score.value <= 1][::-1]
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.4 * len(shown)), layout="constrained")
    for height, score in enumerate(shown):
        axes.barh(height, score.value, xerr=score.stderr, color="tab:blue", ecolor="black")
        for value, style in ((score.chance, CHANCE), (score.unigram, UNIGRAM)):
            if value is not None:
                axes.plot([value] * 2, [height - 0.4, height + 0.4], **style)
    axes.plot([], [], label="chance", **CHANCE)
    if any(score.unigram is not None for score in shown):
        axes.plot([], [], label="unigram", **UNIGRAM)
    axes.set_yticks(range(len(shown)), [f"{score.task}, {score.metric}" for score in shown])
    axes.set(xlim=(0, 1), xlabel="score, with its standard error", title=title)
    axes.legend()
    figure.savefig(path, format="png", dpi=120)
    plt.close(figure)
