"""Ways to compute the loss of one model, compared; imported by worker processes."""

from __future__ import annotations

import os
from typing import Any

from helm_megatron import megatron_patches

megatron_patches.apply()

from torch.profiler import ProfilerActivity, profile  # noqa: E402

from helm_megatron.plan.recipe import parse, validate  # noqa: E402
from helm_megatron.process_groups import process_groups  # noqa: E402
from helm_megatron.verify.compare import gradients, named_tensors, perturb  # noqa: E402
from helm_megatron.verify.layouts import job  # noqa: E402

COMMON = """
    --num-layers 1 --hidden-size 32 --ffn-hidden-size 48 --num-attention-heads 2
    --seq-length 64 --max-position-embeddings 64 --vocab-size 1024
    --swiglu --normalization RMSNorm --disable-bias-linear --position-embedding-type rope
    --hidden-dropout 0 --attention-dropout 0 --lr 1e-3 --train-iters 1
    --micro-batch-size 2 --global-batch-size 2
""".split()


def results(rank: int, ways: list[list[str]], world: int, ports: list[int]) -> list[dict[str, Any]]:
    """For each way, given by flags: the loss, the gradients of this rank as lists by name, and the
    bytes of the largest allocation.
    """
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank))
    os.environ.update(WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    found = []
    for flags, port in zip(ways, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        args = validate(parse([*COMMON, *flags]), world)
        args.rank = args.local_rank = rank
        args.padded_vocab_size = args.vocab_size
        with process_groups(args):
            run = job(args, 1)
            perturb(run.chunks)
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
                loss = run.loss_of_step(0)
            events = profiled.profiler.kineto_results.events()
            by_parameter = gradients(run.chunks)
            named = dict(named_tensors(run.chunks))
            found.append(
                {
                    "loss": loss,
                    "gradients": {
                        name: by_parameter[p].flatten().tolist()
                        for name, p in named.items()
                        if p in by_parameter
                    },
                    "largest": max(e.nbytes() for e in events if e.name() == "[memory]"),
                }
            )
    return found
