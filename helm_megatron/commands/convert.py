"""Convert checkpoints between Megatron, Hugging Face, and the HELM authors' release.

Parameters are streamed one by one, so memory is bounded by the largest; then both models are
compared by their logits of a text in fp32, which needs memory for them (--no-verify skips it).
The output folder appears only if all went well.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from helm_megatron.commands.options import above_zero, not_negative, positive
from helm_megatron.conversion.defaults import MAX_SHARD_BYTES, WARM_START_SCALE
from helm_megatron.conversion.release.arguments import PRESETS
from helm_megatron.errors import HelmError

if TYPE_CHECKING:
    from helm_megatron.conversion.source_model import SourceModel


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--from", dest="source", choices=["megatron", "hf", "helm-release"], required=True
    )
    parser.add_argument("--to", dest="target", choices=["hf", "megatron"], required=True)
    parser.add_argument("--load", type=Path, required=True, help="folder (or file) to read")
    parser.add_argument("--save", type=Path, help="folder to make")
    parser.add_argument(
        "--ckpt-step", type=not_negative, help="iteration to read (default: the latest)"
    )
    parser.add_argument(
        "--tokenizer-model", help="tokenizer, if it is not where the checkpoint's arguments say"
    )
    _add_release_args(parser)
    parser.add_argument(
        "--max-shard-size",
        type=above_zero,
        default=MAX_SHARD_BYTES / 1e9,
        metavar="GB",
        help="size of a safetensors file (default: %(default)g)",
    )
    parser.add_argument(
        "--make-vocab-size-divisible-by",
        type=positive,
        default=128,
        help="with --to megatron: pads the vocabulary, as in training (default: %(default)s)",
    )
    parser.add_argument(
        "--warm-start-scale",
        type=above_zero,
        default=WARM_START_SCALE,
        help="with a Llama-shaped --from hf: how near to the flat origin the HELM-D starts "
        "(default: %(default)g; docs/huggingface.md)",
    )
    parser.add_argument(
        "--tensorboard-dir", type=Path, help="losses for the model card (default: the run's)"
    )
    parser.add_argument(
        "--evaluation", type=Path, help="results file of lm-eval, for the model card"
    )
    parser.add_argument("--no-verify", action="store_true", help="do not compare logits")
    parser.add_argument(
        "--refresh-code",
        action="store_true",
        help="with --from hf --to hf: give the exported folder --load, or a copy of it at --save, "
        "the current code of its model (docs/huggingface.md says who needs it)",
    )
    args = parser.parse_args()
    if args.save is None and not args.refresh_code:
        parser.error("the following arguments are required: --save")
    return args


def _add_release_args(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--release-config",
        type=Path,
        help="with --from helm-release: JSON file of the arguments that the model was built with",
    )
    parser.add_argument(
        "--release-model",
        choices=list(PRESETS),
        help="instead of --release-config: the authors' own arguments (mice_1b of their training "
        "script, mice_1b_eval of their evaluation code)",
    )


def to_hf(args: argparse.Namespace) -> None:
    """--to hf."""
    from helm_megatron.conversion import sources
    from helm_megatron.conversion.to_hf import ConversionError, export

    if args.source == "hf":
        raise ConversionError(
            "--from hf --to hf: there is nothing to convert; --refresh-code gives an exported "
            "folder the current code"
        )
    if args.source == "megatron":
        source = sources.megatron(
            args.load, step=args.ckpt_step, tokenizer_model=args.tokenizer_model
        )
    else:
        source = released(args)
    max_shard_bytes = int(args.max_shard_size * 1e9)
    export(
        source,
        args.save,
        verify=not args.no_verify,
        max_shard_bytes=max_shard_bytes,
        tensorboard=args.tensorboard_dir,
        evaluation=args.evaluation,
    )


def released(args: argparse.Namespace) -> SourceModel:
    """--from helm-release."""
    from helm_megatron.conversion import sources
    from helm_megatron.conversion.to_hf import ConversionError

    if (args.release_config is None) == (args.release_model is None):
        raise ConversionError("--from helm-release needs --release-config or --release-model, one")
    arguments = args.release_config or PRESETS[args.release_model]
    return sources.release(args.load, arguments, tokenizer=args.tokenizer_model)


def to_megatron(args: argparse.Namespace) -> None:
    """--to megatron."""
    from helm_megatron.conversion import to_megatron as megatron
    from helm_megatron.conversion.hf_folder import is_helm
    from helm_megatron.conversion.to_hf import ConversionError

    if args.source == "megatron":
        raise ConversionError(
            "--from megatron --to megatron: there is nothing to convert; pretrain_helm.py loads a "
            "checkpoint in any layout"
        )
    options = {
        "verify": not args.no_verify,
        "divisible_by": args.make_vocab_size_divisible_by,
    }
    if args.source == "helm-release":
        megatron.convert_source(released(args), args.save, **options)
    elif is_helm(args.load):
        megatron.convert_folder(args.load, args.save, **options)
    else:
        megatron.warm_start(args.load, args.save, scale=args.warm_start_scale, **options)


def refresh_code(args: argparse.Namespace) -> None:
    """--refresh-code."""
    from helm_megatron.conversion import refresh
    from helm_megatron.conversion.to_hf import ConversionError

    if (args.source, args.target) != ("hf", "hf"):
        raise ConversionError("--refresh-code is for --from hf --to hf")
    refresh.refresh_code(args.load, args.save)


def main() -> None:
    """Run the tool; a problem ends it with one line and exit code 1."""
    args = parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # converted on the CPU, where every checkpoint fits
    from helm_megatron import megatron_patches

    megatron_patches.apply()  # before anything imports megatron

    from helm_megatron.conversion.quiet import quiet

    quiet()
    try:
        if args.refresh_code:
            refresh_code(args)
        else:
            to_hf(args) if args.target == "hf" else to_megatron(args)
    except HelmError as error:
        sys.exit(f"error: {error}")
    print(f"{args.save or args.load} is complete", file=sys.stderr)
