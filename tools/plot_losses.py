#!/usr/bin/env python
"""Plot a run's training and validation loss from its TensorBoard files.

Example:
    python tools/plot_losses.py --tensorboard-dir runs/quickstart/tensorboard \
        --output runs/quickstart/loss.png --unigram-entropy 6.5

also prints the last validation loss.
"""

import argparse
import sys
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


def main() -> None:
    """Run the tool; a folder without losses ends it with one line and exit code 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tensorboard-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="the PNG to write")
    parser.add_argument(
        "--unigram-entropy", type=float, help="drawn as a dashed line; see tools/unigram_entropy.py"
    )
    args = parser.parse_args()
    if not args.tensorboard_dir.is_dir():
        sys.exit(f"error: {args.tensorboard_dir}: no such folder; see --tensorboard-dir")
    # Size 0 keeps every point; the default thins long runs out.
    events = EventAccumulator(str(args.tensorboard_dir), size_guidance={"scalars": 0}).Reload()
    train, validation = read_curve(events, TRAIN), read_curve(events, VALIDATION)
    if not train and not validation:
        sys.exit(
            f"error: {args.tensorboard_dir}: no losses there yet; was the training run with"
            " --tensorboard-dir, and has it logged an iteration?"
        )
    plot(train, validation, args.unigram_entropy, args.output)
    if validation:
        iteration, loss = validation[-1]
        line = f"validation loss at iteration {iteration}: {loss:.4f} nats per token"
        if args.unigram_entropy is not None:
            line += f" (unigram entropy of the validation tokens: {args.unigram_entropy:.4f})"
        print(line)
    print(f"loss curve: {args.output}")


if __name__ == "__main__":
    main()
