"""Plot a run's training and validation loss from its TensorBoard files.

Example:
    python tools/plot_losses.py --tensorboard-dir runs/quickstart/tensorboard \
        --output runs/quickstart/loss.png --unigram-entropy 6.5

also prints the last validation loss.
"""

import argparse
import sys
from pathlib import Path

from helm_megatron.commands.options import number


def main() -> None:
    """Run the tool; a folder without losses ends it with one line and exit code 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tensorboard-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="the PNG to write")
    parser.add_argument(
        "--unigram-entropy",
        type=number,
        help="drawn as a dashed line; see tools/unigram_entropy.py",
    )
    args = parser.parse_args()
    if not args.tensorboard_dir.is_dir():
        sys.exit(f"error: {args.tensorboard_dir}: no such folder; see --tensorboard-dir")
    # They take seconds.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from helm_megatron.analysis.losses import TRAIN, VALIDATION, plot, read_curve

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
