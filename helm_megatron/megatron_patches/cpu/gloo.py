"""Collectives that NCCL does and gloo refuses, of those that Megatron uses.

Upstream: Megatron 0.19 gathers tensors of different shapes, and gives the split sizes of
all_to_all_single as tensors; torch's gloo backend refuses both.
Here: an uneven all_gather is one broadcast from each rank; split sizes become lists.
Goes: when gloo does them.
"""

import functools

import torch
import torch.distributed as dist

from helm_megatron.megatron_patches.replace import constant

UPSTREAM = dict.fromkeys(["torch.distributed.all_gather", "torch.distributed.all_to_all_single"])


class _Done:
    """The handle of a collective that has finished."""

    wait = is_completed = is_success = constant(True)


def apply() -> None:
    """Replace the collectives that gloo needs help with."""
    all_gather, all_to_all = dist.all_gather, dist.all_to_all_single

    @functools.wraps(all_gather)
    def uneven_all_gather(tensor_list, tensor, group=None, async_op=False):
        # Ranks may give tensors of different shapes: one broadcast from each rank.
        if len({t.shape for t in tensor_list}) <= 1:
            return all_gather(tensor_list, tensor, group=group, async_op=async_op)
        for source, out in enumerate(tensor_list):
            if source == dist.get_rank(group):
                out.copy_(tensor)
            if out.numel():
                dist.broadcast(out, group=group, group_src=source)
        return _Done() if async_op else None

    @functools.wraps(all_to_all)
    def all_to_all_single(
        output, input, output_split_sizes=None, input_split_sizes=None, group=None, async_op=False
    ):
        # Split sizes may be tensors.
        sizes = output_split_sizes, input_split_sizes
        out_sizes, in_sizes = (s.tolist() if isinstance(s, torch.Tensor) else s for s in sizes)
        return all_to_all(output, input, out_sizes, in_sizes, group=group, async_op=async_op)

    dist.all_gather, dist.all_to_all_single = uneven_all_gather, all_to_all_single
