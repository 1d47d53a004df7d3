#!/usr/bin/env python3
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

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # converted on the CPU, where every checkpoint fits

from helm_megatron import megatron_patches

megatron_patches.apply()

from helm_megatron.errors import HelmError  # noqa: E402
from helm_megatron.hf import convert, sources, warm_start  # noqa: E402
from helm_megatron.hf import to_megatron as hf_to_megatron  # noqa: E402
from helm_megatron.hf.convert import ConversionError, Source  # noqa: E402
from helm_megatron.hf.quiet import quiet  # noqa: E402


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--from", dest="source", choices=["megatron", "hf", "helm-release"], required=True
    )
    parser.add_argument("--to", dest="target", choices=["hf", "megatron"], required=True)
    parser.add_argument("--load", type=Path, required=True, help="folder (or file) to read")
    parser.add_argument("--save", type=Path, required=True, help="folder to make")
    parser.add_argument("--ckpt-step", type=int, help="iteration to read (default: the latest)")
    parser.add_argument(
        "--tokenizer-model", help="tokenizer, if it is not where the checkpoint's arguments say"
    )
    parser.add_argument(
        "--release-config",
        type=Path,
        help="with --from helm-release: JSON file of the arguments that the model was built with",
    )
    parser.add_argument(
        "--max-shard-size",
        type=float,
        default=convert.MAX_SHARD_BYTES / 1e9,
        metavar="GB",
        help="size of a safetensors file (default: %(default)g)",
    )
    parser.add_argument(
        "--make-vocab-size-divisible-by",
        type=int,
        default=128,
        help="with --to megatron: pads the vocabulary, as in training (default: %(default)s)",
    )
    parser.add_argument(
        "--warm-start-scale",
        type=float,
        default=warm_start.DEFAULT_SCALE,
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
    return parser.parse_args()


def to_hf(args: argparse.Namespace) -> None:
    """--to hf."""
    if args.source == "hf":
        raise ConversionError("--from hf --to hf: there is nothing to convert")
    if args.source == "megatron":
        source = sources.megatron(
            args.load, step=args.ckpt_step, tokenizer_model=args.tokenizer_model
        )
    else:
        source = released(args)
    max_shard_bytes = int(args.max_shard_size * 1e9)
    convert.export(
        source,
        args.save,
        verify=not args.no_verify,
        max_shard_bytes=max_shard_bytes,
        tensorboard=args.tensorboard_dir,
        evaluation=args.evaluation,
    )


def released(args: argparse.Namespace) -> Source:
    """--from helm-release."""
    if args.release_config is None:
        raise ConversionError("--from helm-release needs --release-config")
    return sources.release(args.load, args.release_config, tokenizer=args.tokenizer_model)


def to_megatron(args: argparse.Namespace) -> None:
    """--to megatron."""
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
        hf_to_megatron.convert_source(released(args), args.save, **options)
    elif hf_to_megatron.is_helm(args.load):
        hf_to_megatron.convert_folder(args.load, args.save, **options)
    else:
        hf_to_megatron.warm_start(args.load, args.save, scale=args.warm_start_scale, **options)


def main() -> None:
    """Run the tool; a problem ends it with one line and exit code 1."""
    args = parse_args()
    try:
        to_hf(args) if args.target == "hf" else to_megatron(args)
    except HelmError as error:
        sys.exit(f"error: {error}")
    print(f"{args.save} is complete", file=sys.stderr)


if __name__ == "__main__":
    quiet()
    main()
