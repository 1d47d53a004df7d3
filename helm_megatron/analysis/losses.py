"""Loss curves of a run, from its TensorBoard files."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TRAIN = "lm loss"
VALIDATION = "lm loss validation"

Curve = list[tuple[int, float]]


def read_curve(events: EventAccumulator, tag: str) -> Curve:
    """Return (iteration, value) of a scalar; where a resumed run repeats one, the last stands."""
    if tag not in events.Tags()["scalars"]:
        return []
    return sorted({event.step: event.value for event in events.Scalars(tag)}.items())


def plot(train: Curve, validation: Curve, unigram_entropy: float | None, output: Path) -> None:
    """Write the loss curves, in nats a token, as a PNG."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for curve, label, style in ((train, "training", "-"), (validation, "validation", "o-")):
        if curve:
            axes.plot(*zip(*curve, strict=True), style, label=label)
    if unigram_entropy is not None:
        axes.axhline(
            unigram_entropy, linestyle="--", color="gray", label="unigram entropy (validation)"
        )
    axes.set(xlabel="iteration", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, format="png", dpi=120)
    plt.close(figure)
