#!/usr/bin/env python3
"""Lorentz attention against Euclidean attention: error against fp64, and time.

An error is the norm of the difference over that of the exact output or gradients (by q, k and v
together), at inputs of some standard deviation, the magnitude. In brackets: how many times that of
Euclidean attention. Times are of a forward and backward pass; on the CPU, of all threads' work.

    python benchmarks/attention.py --lengths 256 1024 4096 --output attention.json
    python benchmarks/attention.py --interpret --lengths 192 --heads 1 --groups 1

The second runs the Triton kernel in Triton's interpreter, where there is no GPU; its time says
nothing.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

if "--interpret" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

from helm_megatron import megatron_patches

megatron_patches.apply()

import torch  # noqa: E402
from measure import add_output, in_turns, report  # noqa: E402
from megatron.core.transformer.enums import AttnBackend  # noqa: E402
from torch import Tensor  # noqa: E402

from helm_megatron.config import HelmSettings  # noqa: E402
from helm_megatron.kernels.flash.plain import lorentz_attention  # noqa: E402
from helm_megatron.layers.attention import LorentzAttention  # noqa: E402
from helm_megatron.layers.dot_product import DotProductAttention  # noqa: E402

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MAGNITUDES = (0.3, 1.0, 3.0)


def bare(kind: type, **attributes: Any) -> Any:
    """A core without a model around it."""
    module = kind.__new__(kind)
    torch.nn.Module.__init__(module)
    vars(module).update(attributes)
    return module


def core(args: argparse.Namespace, geometry: str, backend: str) -> Attention:
    """The product's attention over the kernel that `--attention-backend` names."""
    alone = SimpleNamespace(size=lambda: 1)
    config = SimpleNamespace(
        sequence_parallel=False, attention_backend=AttnBackend[backend], helm=HelmSettings()
    )
    common = dict(config=config, dropout=0.0, cp_group=alone, tp_group=alone)
    lorentz = geometry == "lorentz"
    scale = 1.0 if lorentz else args.key_width**-0.5
    kernel = bare(DotProductAttention, softmax_scale=scale, **common)
    if not lorentz:
        return lambda q, k, v: kernel(q, k, v, None)
    module = bare(LorentzAttention, kernel=kernel, temperature=temperature(args), **common)
    return lambda q, k, v: module(q, k, v, None)


def temperature(args: argparse.Namespace) -> Tensor:
    """tau of a model that has not been trained."""
    return torch.tensor([math.sqrt(args.heads * (args.key_width + 1))], device=DEVICE)


def cores(args: argparse.Namespace, tokens: int) -> dict[str, Attention]:
    """What is compared, by its row in the table; Euclidean first."""
    found = {"Euclidean": core(args, "euclidean", "fused")}
    backends = ["flash"] if DEVICE == "cuda" or args.interpret else []
    backends += ["fused"] if tokens > args.exact_up_to else ["fused", "unfused"]
    return found | {f"Lorentz, {name}": core(args, "lorentz", name) for name in backends}


def exact(args: argparse.Namespace, name: str) -> Attention:
    """The function in fp64, with all scores written out."""
    if name == "Euclidean":
        return core(args, "euclidean", "unfused")
    tau = temperature(args).double()
    return lambda q, k, v: lorentz_attention(q, k, v, tau, HelmSettings().curvature).flatten(-2)


def inputs(args: argparse.Namespace, tokens: int, magnitude: float) -> list[Tensor]:
    """q, k, v in fp32, the same for every dtype."""
    generator = torch.Generator().manual_seed(args.seed)
    shapes = (args.heads, args.key_width), (args.groups, args.key_width)
    shapes += ((args.groups, args.value_width),)
    made = [torch.randn(tokens, args.batch, *shape, generator=generator) for shape in shapes]
    return [(magnitude * x).to(DEVICE) for x in made]


def results(attention: Attention, qkv: list[Tensor], wide: bool = False) -> list[Tensor]:
    """Output, and gradients by all inputs as one vector, in fp64 if wide."""
    leaves = [(x.double() if wide else x).detach().requires_grad_() for x in qkv]
    out = attention(*leaves)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(out.shape, generator=generator).to(qkv[0].dtype).to(out)
    gradients = torch.autograd.grad(out, leaves, cotangent)
    return [out.detach(), torch.cat([g.flatten() for g in gradients])]


def errors(
    args: argparse.Namespace, tokens: int, dtype: torch.dtype
) -> dict[str, dict[str, tuple[float, float]]]:
    """By row and by column of the table: the error, and how many times the Euclidean one."""
    table: dict[str, dict[str, tuple[float, float]]] = {}
    for magnitude in MAGNITUDES:
        qkv = [x.to(dtype) for x in inputs(args, tokens, magnitude)]
        for name, attention in cores(args, tokens).items():
            pairs = zip(
                ("output", "gradients"),
                results(attention, qkv),
                results(exact(args, name), qkv, wide=True),
                strict=True,
            )
            for what, found, right in pairs:
                error = ((found.double() - right).norm() / right.norm()).item()
                column = f"{what}, {magnitude:g}"
                unit = table["Euclidean"][column][0] if name != "Euclidean" else error
                table.setdefault(name, {})[column] = (error, error / unit)
    return table


def times(args: argparse.Namespace, tokens: int, dtype: torch.dtype) -> dict[str, float]:
    """Median seconds of a forward and backward pass, taken in turns."""
    leaves = [x.to(dtype).requires_grad_() for x in inputs(args, tokens, 1.0)]

    def step(attention: Attention) -> Callable[[], None]:
        def run() -> None:
            out = attention(*leaves)
            torch.autograd.grad(out, leaves, torch.ones_like(out))

        return run

    calls = {name: step(attention) for name, attention in cores(args, tokens).items()}
    found = in_turns(calls, args.repeats)
    return {name: taken.wall if DEVICE == "cuda" else taken.cpu for name, taken in found.items()}


def measured(args: argparse.Namespace, tokens: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """The rows of one length and dtype."""
    known = tokens <= args.exact_up_to
    error = errors(args, tokens, dtype) if known else {}
    seconds = {} if args.interpret else times(args, tokens, dtype)
    rows = []
    for name in cores(args, tokens):
        row = {"dtype": str(dtype).removeprefix("torch."), "tokens": tokens, "attention": name}
        for column in (f"{w}, {m:g}" for w in ("output", "gradients") for m in MAGNITUDES):
            row[column] = "{:.1e} ({:.2f})".format(*error[name][column]) if known else None
        row["ms"] = f"{1e3 * seconds[name]:.1f}" if seconds else None
        row["/ Euclidean"] = f"{seconds[name] / seconds['Euclidean']:.2f}" if seconds else None
        rows.append(row)
    return rows


def main() -> None:
    """Measure, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--groups", type=int, default=6, help="heads of keys and values")
    parser.add_argument("--key-width", type=int, default=64)
    parser.add_argument("--value-width", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--exact-up-to", type=int, default=2048, help="longest sequence compared with fp64"
    )
    parser.add_argument(
        "--interpret", action="store_true", help="the Triton kernel in Triton's interpreter"
    )
    add_output(parser)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    for dtype in args.dtypes:
        for tokens in args.lengths:
            print(f"{dtype}, {tokens} tokens ...", file=sys.stderr, flush=True)
            rows += measured(args, tokens, getattr(torch, dtype))
    report(rows, args.output)


if __name__ == "__main__":
    main()
