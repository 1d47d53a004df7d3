"""Look at the geometry of a model: a checkpoint of pretrain_helm.py or a Hugging Face folder.

Of the token embeddings: distances to the origin, against token frequency if --data-path is given;
how tree-like they are (Gromov's delta); chosen words in the Poincare disk. Of a text: times by
layer, the load of every expert. Of the experts: their curvatures.

Example:
    python tools/analyze_geometry.py --load checkpoints --data-path data/corpus_text_document \
        --words examples/data/animals.tsv --output-dir geometry

writes index.html, which has all of it, the pictures as PNG, and numbers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helm_megatron.analysis import SAMPLES
from helm_megatron.commands.options import positive, seed
from helm_megatron.data.errors import DataError
from helm_megatron.data.output import full_disk, own_folder
from helm_megatron.errors import HelmError
from helm_megatron.evaluation.model import hf_folder

if TYPE_CHECKING:
    import torch

    from helm_megatron.hf.modeling_helm import HelmForCausalLM


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--load", type=Path, required=True, help="Megatron checkpoints or Hugging Face folder"
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for page and PNGs")
    parser.add_argument("--data-path", help="prefix of .bin and .idx files, to count tokens in")
    parser.add_argument(
        "--words", type=Path, help="file: a word a line, with its parent after a tab if it has one"
    )
    parser.add_argument(
        "--text", type=Path, help="what the model reads for times and loads (default: a sample)"
    )
    parser.add_argument(
        "--samples",
        type=positive,
        default=SAMPLES,
        help="tokens for Gromov's delta (default: %(default)s)",
    )
    parser.add_argument("--seed", type=seed, default=0, help="of the choice of these (default: 0)")
    return parser.parse_args()


def embeddings(model: HelmForCausalLM) -> tuple[torch.Tensor, float]:
    """The table `[vocabulary, hidden]` and its curvature; 1 to look at a Euclidean twin's."""
    lorentz = model.config.geometry == "lorentz"
    c = model.config.embedding_curvature if lorentz else 1.0
    return model.get_input_embeddings().weight.detach().float(), c


def delta(table: torch.Tensor, c: float | None, args: argparse.Namespace) -> dict[str, str]:
    """Relative hyperbolicity of some tokens, beside that of the same coordinates shuffled."""
    import torch

    from helm_megatron.analysis import tokens

    generator = torch.Generator().manual_seed(args.seed)
    chosen = table[tokens.sample(len(table), generator, args.samples)]
    own = tokens.relative_hyperbolicity(tokens.distances(chosen, c))
    mixed = tokens.shuffled(chosen, generator)
    control = tokens.relative_hyperbolicity(tokens.distances(mixed, c))
    name = f"2 delta / diameter of {len(chosen)} tokens (0: a tree)"
    return {name: f"{own:.3f}", f"{name}, coordinates shuffled": f"{control:.3f}"}


def analyze(
    folder: Path, out: Path, args: argparse.Namespace
) -> tuple[dict[str, str], dict[str, Path]]:
    """Numbers, and pictures in the folder `out`, of the model in a Hugging Face folder."""
    import torch

    from helm_megatron.analysis import activations, figures, tokens
    from helm_megatron.analysis.words import points_of, read_words
    from helm_megatron.conversion.hf_folder import load_model, load_tokenizer
    from helm_megatron.conversion.text import SAMPLE
    from helm_megatron.data.entropy import token_counts

    model = load_model(folder, torch.float32)
    tokenizer: Any = load_tokenizer(folder)
    table, c = embeddings(model)
    radius = tokens.radii(table, c)
    numbers = {
        "embedding curvature c": f"{c:g}",
        "median distance of a token to the origin": f"{radius.median():.4g}",
        "largest": f"{radius.max():.4g}",
    } | delta(table, c if model.config.geometry == "lorentz" else None, args)
    pictures = {"Distance of tokens to the origin": out / "radii.png"}
    figures.radius_histogram(out / "radii.png", radius)
    if args.data_path:
        counts = torch.zeros(len(radius), dtype=torch.long)
        found = torch.from_numpy(token_counts(args.data_path))
        if len(found) > len(counts):
            raise DataError(
                f"{args.data_path} has tokens that the model does not: another tokenizer"
            )
        counts[: len(found)] = found
        frequency = out / "radius_by_frequency.png"
        pictures["Distance to the origin against frequency"] = figures.radius_by_frequency(
            frequency, radius, counts
        )
    if args.words:
        words = read_words(args.words)
        places = tokens.disk(points_of(words, tokenizer, table, c), c)
        pictures[f"{args.words.name} in the Poincare disk"] = figures.poincare_disk(
            out / "disk.png", places, words.names, words.edges
        )
    text = args.text.read_text(encoding="utf-8") if args.text else SAMPLE
    ids = torch.tensor([tokenizer(text).input_ids[: model.config.max_position_embeddings]])
    seen = activations.observe(model, ids)
    for number, times in enumerate(seen.times):
        numbers[f"layer {number}: median and largest time"] = (
            f"{times.median():.4g} {times.max():.4g}"
        )
    for number, load in seen.loads.items():
        numbers[f"layer {number}: load of the experts"] = " ".join(f"{x:.2f}" for x in load)
    for number, values in seen.curvatures.items():
        numbers[f"layer {number}: c of the experts"] = " ".join(f"{x:.3g}" for x in values)
    return numbers, pictures | figures.of_activations(out, seen)


def write(
    numbers: dict[str, str], pictures: dict[str, Path], staging: Path, args: argparse.Namespace
) -> None:
    """Add the page and the numbers to the pictures in `staging`, and move all to --output-dir."""
    from helm_megatron.analysis.page import page

    (staging / "numbers.json").write_text(json.dumps(numbers, indent=2) + "\n")
    text = page(f"Geometry of {args.load}", numbers, pictures)
    (staging / "index.html").write_text(text, encoding="utf-8")
    for name in [*(path.name for path in pictures.values()), "numbers.json", "index.html"]:
        os.replace(staging / name, args.output_dir / name)


def main() -> None:
    """Run the tool; a problem ends it with one line and exit code 1."""
    args = parse_args()
    try:
        with full_disk(args.output_dir):
            args.output_dir.mkdir(parents=True, exist_ok=True)
            with (
                hf_folder(args.load, args.output_dir) as folder,
                own_folder(args.output_dir, ".staged-") as staging,
            ):
                numbers, pictures = analyze(folder, staging, args)
                write(numbers, pictures, staging, args)
    except (HelmError, UnicodeDecodeError) as error:
        sys.exit(f"error: {error}")
    for name, value in numbers.items():
        print(f"{name}: {value}")
    print(f"all of it: {args.output_dir / 'index.html'}")
