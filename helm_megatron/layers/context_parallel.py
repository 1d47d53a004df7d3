"""Attention over a sequence whose tokens are spread over context-parallel ranks.

Megatron cuts a sequence into 2n chunks and gives rank r of n the r-th from the start and the r-th
from the end, so that all ranks have the same causal work. Every rank gathers the keys and values
of the whole sequence and attends with its own queries.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch import Tensor


def gather_sequence(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """x `[s / n, ...]` of all ranks as `[s, ...]`, in the order of the sequence.

    Its gradient on a rank is the sum over all ranks' use of that rank's tokens.
    """
    gathered = gather_from_sequence_parallel_region(x, group=group)
    chunks = gathered.chunk(2 * group.size())
    return torch.cat([*chunks[0::2], *reversed(chunks[1::2])])


def causal_chunks(q: Tensor, group: dist.ProcessGroup) -> list[tuple[Tensor, int]]:
    """This rank's two chunks of queries `[s / n, ...]`, each with the number of keys up to its end.

    Within a chunk causality is that of a triangle at the lower right of the scores.
    """
    early, late = q.chunk(2)
    end = (group.rank() + 1) * len(early)
    return [(early, end), (late, (2 * group.size() + 1) * len(early) - end)]


def from_first_rank(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """x of the rank that has the start of the sequence; it must not need a gradient."""
    if group.size() > 1:
        x = x.contiguous()
        dist.broadcast(x, group=group, group_src=0)
    return x
