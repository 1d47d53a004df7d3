"""Two ways to attend over a sequence spread over context-parallel ranks, timed in one run.

`gather` is what `helm_megatron.layers.dot_product` does: every rank gathers keys and values.
`all-to-all` exchanges heads for tokens, attends to the whole sequence with a part of the heads, and
exchanges back; it needs heads (and query groups) that the ranks divide.

    torchrun --nproc_per_node 2 benchmarks/context_parallel.py --output context_parallel.json
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from helm_megatron import megatron_patches

megatron_patches.apply()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from megatron.core.tensor_parallel.mappings import all_to_all  # noqa: E402
from megatron.core.transformer.enums import AttnBackend  # noqa: E402
from torch import Tensor  # noqa: E402

from helm_megatron.kernels.augment.op import augmented_width  # noqa: E402
from helm_megatron.layers.dot_product import DotProductAttention  # noqa: E402

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
# Heads, query groups, width of a key and of a value head.
SHAPES = {
    "multi-head": (12, 12, 64, 64),
    "grouped queries": (12, 4, 64, 64),
    "latent": (12, 12, 96, 64),
}


def core(group: dist.ProcessGroup) -> Attention:
    """The product's core without a model around it."""
    module = DotProductAttention.__new__(DotProductAttention)
    torch.nn.Module.__init__(module)
    module.config = SimpleNamespace(sequence_parallel=False, attention_backend=AttnBackend.auto)
    module.softmax_scale, module.dropout, module.cp_group = 0.1, 0.0, group
    return functools.partial(module, attention_mask=None)


def exchanged(attend: Attention, group: dist.ProcessGroup) -> Attention:
    """Attention with the heads, not the tokens, spread over the ranks, around its kernel."""
    ranks = group.size()

    def to_heads(x: Tensor) -> Tensor:
        parts = torch.cat(x.chunk(ranks, dim=2))
        chunks = all_to_all(group, parts.contiguous()).chunk(2 * ranks)
        return torch.cat([*chunks[0::2], *reversed(chunks[1::2])])

    def to_tokens(x: Tensor, width: int) -> Tensor:
        chunks = x.unflatten(-1, (-1, width)).chunk(2 * ranks)
        order = [c for r in range(ranks) for c in (chunks[r], chunks[-1 - r])]
        parts = all_to_all(group, torch.cat(order).contiguous()).chunk(ranks)
        return torch.cat(parts, dim=2).flatten(2)

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return to_tokens(attend(*map(to_heads, (q, k, v))), v.shape[-1])

    return forward


def inputs(shape: tuple[int, int, int, int], tokens: int) -> list[Tensor]:
    """This rank's augmented q, k, v, as Lorentz attention passes them on."""
    heads, groups, key, value = shape
    sizes = (heads, key), (groups, key), (groups, value)
    widths = [(n, augmented_width(torch.float32, d, lanes=1)) for n, d in sizes]
    return [torch.randn(tokens, 1, n, d, requires_grad=True) for n, d in widths]


def sent(shape: tuple[int, int, int, int], tokens: int, ranks: int) -> dict[str, float]:
    """Bytes that a rank sends in the forward pass, in MB; the backward pass sends as many."""
    q, k, v = (x.numel() * x.element_size() for x in inputs(shape, tokens))
    out = v * shape[0] // shape[1]
    kept = 1 / ranks
    exchange = (1 - kept) * (q + k + v + out)
    return {"gather": (ranks - 1) * (k + v) / 1e6, "all-to-all": exchange / 1e6}


def step(attend: Attention, qkv: list[Tensor]) -> float:
    """Seconds of a forward and backward pass, from when all ranks are ready."""
    dist.barrier()
    start = time.perf_counter()
    attend(*qkv).square().mean().backward()
    dist.barrier()
    return time.perf_counter() - start


def measure(shape: tuple[int, int, int, int], tokens: int, repeats: int) -> dict[str, float]:
    """Median seconds of either way, taken in turn, after a check that they agree."""
    group = dist.group.WORLD
    alone = SimpleNamespace(size=lambda: 1)
    ways = {"gather": core(group), "all-to-all": exchanged(core(alone), group)}
    qkv = inputs(shape, tokens // group.size())
    outputs = [attend(*qkv) for attend in ways.values()]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, attend in ways.items():
            seconds[name].append(step(attend, qkv))
    return {name: statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, help="write the figures as JSON, too")
    args = parser.parse_args()
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    torch.set_num_threads(1)
    torch.manual_seed(dist.get_rank())
    rows = []
    for name, shape in SHAPES.items():
        for tokens in args.tokens:
            took = measure(shape, tokens, args.repeats)
            megabytes = sent(shape, tokens // dist.get_world_size(), dist.get_world_size())
            rows.append({"shape": name, "tokens": tokens, "seconds": took, "sent": megabytes})
    if dist.get_rank() == 0:
        print("| shape | tokens | gather / all-to-all, time | MB sent, gather | all-to-all |")
        print("|---|---|---|---|---|")
        for row in rows:
            ratio = row["seconds"]["gather"] / row["seconds"]["all-to-all"]
            mb = row["sent"]
            print(
                f"| {row['shape']} | {row['tokens']} | {ratio:.2f} "
                f"| {mb['gather']:.1f} | {mb['all-to-all']:.1f} |"
            )
        if args.output:
            args.output.write_text(json.dumps(rows, indent=1))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
