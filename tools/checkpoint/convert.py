#!/usr/bin/env python3
"""Convert checkpoints between Megatron, Hugging Face, and the HELM authors' release.

Parameters are streamed one by one, so memory is bounded by the largest; then both models are
compared by their logits of a text in fp32, which needs memory for the models (--no-verify skips it).
The output folder appears only if all went well.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # converted on the CPU, where every checkpoint fits

from helm_megatron import platform

platform.setup()

from helm_megatron.checkpoint.files import CheckpointError  # noqa: E402
from helm_megatron.hf import convert, sources  # noqa: E402
from helm_megatron.hf.mapping import MappingError  # noqa: E402
from helm_megatron.hf.settings import SettingsError  # noqa: E402
from helm_megatron.hf.tensor_files import TensorFileError  # noqa: E402
from helm_megatron.hf.text import TextError  # noqa: E402

ERRORS = (
    CheckpointError,
    MappingError,
    SettingsError,
    TensorFileError,
    TextError,
    convert.ConversionError,
)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--from", dest="source", choices=["megatron", "helm-release"], required=True
    )
    parser.add_argument("--to", dest="target", choices=["hf"], required=True)
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
    parser.add_argument("--no-verify", action="store_true", help="do not compare logits")
    return parser.parse_args()


def source_of(args: argparse.Namespace) -> convert.Source:
    """The model to export."""
    if args.source == "megatron":
        return sources.megatron(
            args.load, step=args.ckpt_step, tokenizer_model=args.tokenizer_model
        )
    if args.release_config is None:
        raise convert.ConversionError("--from helm-release needs --release-config")
    return sources.release(args.load, args.release_config, tokenizer=args.tokenizer_model)


def main() -> None:
    """Run the tool; a problem ends it with one line and exit code 1."""
    args = parse_args()
    try:
        source = source_of(args)
        convert.export(
            source,
            args.save,
            verify=not args.no_verify,
            max_shard_bytes=int(args.max_shard_size * 1e9),
        )
    except ERRORS as error:
        sys.exit(f"error: {error}")
    print(f"{args.save} is complete", file=sys.stderr)


if __name__ == "__main__":
    main()
