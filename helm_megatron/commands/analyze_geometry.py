"""Look at the geometry of a model: a checkpoint of pretrain_helm.py or a Hugging Face folder.

Of the token embeddings: distances to the origin, against token frequency if --data-path is given;
how tree-like they are (Gromov's delta, Ollivier-Ricci curvature); chosen words in the Poincare
disk. Of words from generic to specific: the norms of their states. Of a text: times and effective
rank by layer, the load of every expert. Of the experts: their curvatures. Of two models, a HELM
and its twin for example, all of it side by side. docs/analysis.md explains each.

Example:
    python tools/analyze_geometry.py --load checkpoints --data-path data/corpus_text_document \
        --words examples/data/animals.tsv --output-dir geometry

writes index.html, which has all of it, the pictures as PNG, and numbers.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from helm_megatron.analysis import SAMPLES
from helm_megatron.commands.options import positive, seed
from helm_megatron.data.errors import DataError
from helm_megatron.data.output import full_disk, own_folder
from helm_megatron.errors import HelmError
from helm_megatron.evaluation.model import hf_folder

if TYPE_CHECKING:
    from helm_megatron.analysis.portrait import Options, Portrait


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--load",
        type=Path,
        nargs="+",
        required=True,
        metavar="MODEL",
        help="Megatron checkpoints or Hugging Face folder; a second one stands beside the first",
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for page and PNGs")
    parser.add_argument("--data-path", help="prefix of .bin and .idx files, to count tokens in")
    parser.add_argument(
        "--words", type=Path, help="file: a word a line, with its parent after a tab if it has one"
    )
    parser.add_argument(
        "--word-groups",
        type=Path,
        help="file: a group, a tab and a word a line, generic groups first (default: nouns by "
        "their depth in WordNet, and two lists in the manner of papers)",
    )
    parser.add_argument(
        "--text", type=Path, help="what the model reads for times and loads (default: a sample)"
    )
    parser.add_argument(
        "--samples",
        type=positive,
        default=SAMPLES,
        help="tokens for Gromov's delta and for Ricci curvature (default: %(default)s)",
    )
    parser.add_argument("--seed", type=seed, default=0, help="of the choice of these (default: 0)")
    return parser.parse_args()


def options_of(args: argparse.Namespace) -> Options:
    """What the command line chooses, with the files that it names read.

    Raises:
        DataError, WordsError: one cannot be used.
    """
    import torch

    from helm_megatron.analysis import portrait, states, words
    from helm_megatron.conversion.text import SAMPLE
    from helm_megatron.data.entropy import token_counts

    lists = states.GROUPS if args.word_groups is None else {args.word_groups.stem: args.word_groups}
    return portrait.Options(
        samples=args.samples,
        seed=args.seed,
        text=args.text.read_text(encoding="utf-8") if args.text else SAMPLE,
        counts=torch.from_numpy(token_counts(args.data_path)) if args.data_path else None,
        words=words.read_words(args.words) if args.words else None,
        groups={name: states.read_groups(path) for name, path in lists.items()},
    )


def look(folder: Path, options: Options, data_path: str | None) -> Portrait:
    """What there is to see of the model in a Hugging Face folder.

    Raises:
        DataError: the dataset whose tokens were counted is not for this model.
    """
    import torch

    from helm_megatron.analysis import portrait
    from helm_megatron.conversion.hf_folder import load_model, load_tokenizer

    model = load_model(folder, torch.float32)
    if options.counts is not None and len(options.counts) > model.config.vocab_size:
        raise DataError(f"{data_path} has tokens that the model does not: another tokenizer")
    return portrait.portray(model, load_tokenizer(folder), options)


def names_of(loads: Sequence[Path]) -> list[str]:
    """What the models are called: of one its folder's name, of two what differs in their paths."""
    if len(loads) == 1:
        return [loads[0].resolve().name]
    one, other = ([*load.resolve().parts] for load in loads)
    for end in (-1, 0):
        while one and other and one[end] == other[end]:
            one.pop(end)
            other.pop(end)
    names = zip((one, other), loads, strict=True)
    return [str(Path(*parts)) if parts else str(load) for parts, load in names]


def write(
    numbers: dict[str, dict[str, str]],
    pictures: dict[str, Path],
    staging: Path,
    args: argparse.Namespace,
) -> None:
    """Add the page and the numbers to the pictures in `staging`, and move all to --output-dir."""
    from helm_megatron.analysis.page import page

    # Of one model its numbers alone.
    content = numbers if len(numbers) > 1 else next(iter(numbers.values()))
    (staging / "numbers.json").write_text(json.dumps(content, indent=2) + "\n")
    text = page(f"Geometry of {', '.join(map(str, args.load))}", numbers, pictures)
    (staging / "index.html").write_text(text, encoding="utf-8")
    for name in [*(path.name for path in pictures.values()), "numbers.json", "index.html"]:
        os.replace(staging / name, args.output_dir / name)


def run(args: argparse.Namespace) -> dict[str, dict[str, str]]:
    """Write everything into --output-dir, and return the numbers."""
    if len(args.load) > 2 or len({load.resolve() for load in args.load}) < len(args.load):
        raise HelmError("--load takes one model, or two different ones")
    from helm_megatron.analysis import portrait

    with full_disk(args.output_dir), contextlib.ExitStack() as stack:
        options = options_of(args)  # before a model is converted, or loaded
        args.output_dir.mkdir(parents=True, exist_ok=True)
        folders = {
            name: stack.enter_context(hf_folder(load, args.output_dir))
            for name, load in zip(names_of(args.load), args.load, strict=True)
        }
        staging = stack.enter_context(own_folder(args.output_dir, ".staged-"))
        models = {}
        for name, folder in folders.items():
            print(f"looking at {name}", file=sys.stderr, flush=True)
            models[name] = look(folder, options, args.data_path)
        numbers = {name: portrait.numbers(model) for name, model in models.items()}
        write(numbers, portrait.draw(models, staging, options), staging, args)
    return numbers


def main() -> None:
    """Run the tool; a problem ends it with one line and exit code 1."""
    args = parse_args()
    try:
        numbers = run(args)
    except (HelmError, UnicodeDecodeError) as error:
        sys.exit(f"error: {error}")
    for model, own in numbers.items():
        if len(numbers) > 1:
            print(f"\n{model}")
        for name, value in own.items():
            print(f"{name}: {value}")
    print(f"all of it: {args.output_dir / 'index.html'}")
