"""The command `helm-megatron`: one subcommand for each line of the table here."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

# Name, module and what it does. A module is imported when its command is chosen, not before; its
# `main` reads sys.argv, as Megatron's parser does, and returns an exit code or none.
COMMANDS: dict[str, tuple[str, str]] = {
    "preprocess": ("commands.preprocess_data", "tokenize text into .bin/.idx files"),
    "train-tokenizer": ("commands.train_tokenizer", "train a SentencePiece tokenizer"),
    "inspect": ("commands.inspect_data", "show and verify a .bin/.idx dataset"),
    "merge": ("commands.merge_datasets", "join .bin/.idx datasets"),
    "unigram-entropy": ("commands.unigram_entropy", "the loss a model without context can reach"),
    "build-data-cache": ("commands.build_data_cache", "build Megatron's index cache before a job"),
    "pretrain": ("train", "train a model; under torchrun, as pretrain_helm.py does"),
    "plan": ("plan.command", "estimate memory, communication and step time of layouts"),
    "verify": ("verify.__main__", "prove a layout before using it; under torchrun"),
    "preflight": ("cluster.preflight", "check every node of a job; one process a node"),
    "plot": ("commands.plot_losses", "plot a run's losses"),
    "convert": ("commands.convert", "convert to and from Hugging Face and the HELM release"),
    "generate": ("commands.generate", "continue prompts"),
    "evaluate": ("commands.evaluate", "evaluate a model by lm-eval"),
    "study": ("commands.study", "compare variants of a model over seeds and learning rates"),
    "analyze": ("commands.analyze_geometry", "look at the geometry of a model"),
    "doctor": ("doctor", "show versions, GPUs and fused paths, and train one step"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand with the arguments after its name; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="helm-megatron",
        usage="%(prog)s [-h] COMMAND ...",
        description="HELM: training data, plans, checkpoints and models. COMMAND is one of",
        epilog="\n".join(
            [*(f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items())]
            + ["", "`helm-megatron COMMAND --help` lists the flags of one."]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    name: str = parser.parse_args(given[:1]).command
    sys.argv = [f"helm-megatron {name}", *given[1:]]
    module = importlib.import_module(f"helm_megatron.{COMMANDS[name][0]}")
    return module.main() or 0


if __name__ == "__main__":
    sys.exit(main())
