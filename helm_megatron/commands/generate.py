"""Continue prompts with a model, from a Megatron checkpoint or a Hugging Face folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from helm_megatron.commands.options import not_negative, number, positive, seed, share
from helm_megatron.errors import HelmError


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--load", type=Path, required=True, help="checkpoint or folder")
    parser.add_argument("--prompt", nargs="+", required=True, help="one text or several")
    parser.add_argument(
        "--ckpt-step", type=not_negative, help="iteration to read (default: the latest)"
    )
    parser.add_argument(
        "--tokenizer-model", help="tokenizer, if it is not where the checkpoint's arguments say"
    )
    parser.add_argument("--max-new-tokens", type=positive, default=64, help="default: %(default)s")
    parser.add_argument(
        "--temperature", type=number, default=0.8, help="0 is greedy (default: %(default)s)"
    )
    parser.add_argument("--top-k", type=not_negative, default=0, help="0: all tokens (default)")
    parser.add_argument("--top-p", type=share, default=0.95, help="default: %(default)s")
    parser.add_argument("--num-beams", type=positive, default=1, help="default: %(default)s")
    parser.add_argument("--seed", type=seed, default=1234, help="default: %(default)s")
    parser.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16"], default="auto", help="of the model"
    )
    return parser.parse_args()


def main() -> None:
    """Run the tool; a problem ends it with one line and exit code 1."""
    args = parse_args()
    import torch

    from helm_megatron.conversion import generate
    from helm_megatron.conversion.quiet import quiet

    quiet()
    torch.manual_seed(args.seed)
    sampling = {"do_sample": False}
    if args.temperature > 0:
        sampling = {"do_sample": True, "temperature": args.temperature}
        sampling |= {"top_k": args.top_k, "top_p": args.top_p}
    try:
        with generate.as_hf_folder(
            args.load, step=args.ckpt_step, tokenizer_model=args.tokenizer_model
        ) as folder:
            texts = generate.generate(
                folder,
                args.prompt,
                dtype=args.dtype,
                device="cuda" if torch.cuda.is_available() else "cpu",
                max_new_tokens=args.max_new_tokens,
                num_beams=args.num_beams,
                **sampling,
            )
    except HelmError as error:
        sys.exit(f"error: {error}")
    for prompt, text in zip(args.prompt, texts, strict=True):
        print(f"{prompt}{text}")
