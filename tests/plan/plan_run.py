"""What a plan says of a small run, and what the run itself takes; imported by worker processes."""

from __future__ import annotations

import os
from typing import Any

from helm_megatron import megatron_patches

megatron_patches.apply()

import torch  # noqa: E402
from megatron.core import parallel_state as ps  # noqa: E402
from traffic import count_collectives, group_names  # noqa: E402

from helm_megatron.layers import attention  # noqa: E402
from helm_megatron.plan import communication  # noqa: E402
from helm_megatron.plan.layout import Layout  # noqa: E402
from helm_megatron.plan.parts import PartsOf, total  # noqa: E402
from helm_megatron.plan.recipe import parse, validate  # noqa: E402
from helm_megatron.plan.stages import kinds, memory, stages  # noqa: E402
from helm_megatron.plan.tracing import SMALL  # noqa: E402
from helm_megatron.process_groups import process_groups  # noqa: E402
from helm_megatron.verify.layouts import job  # noqa: E402

# Plans are of runs on GPUs; on the CPU attention computes in fp32 whatever the model's type.
attention.LorentzAttention.computed_in = lambda self, x: x


def planned(rank: int, flags: list[str], world: int) -> dict[str, Any]:
    """The plan of the flags' own layout, stage by stage."""
    parsed = parse(flags)
    args = validate(parsed, world)
    layout = Layout.of(args)
    parts = PartsOf(parsed)(layout)
    count = layout.microbatches(args, world)
    found = stages(args, layout, parts, count)
    return {
        "total": total(parts, kinds(args)),
        "memory": [memory(args, layout, stage, world) for stage in found],
        "parameters": [stage.dense + stage.expert for stage in found],
        "saved": sum(part.saved for stage in found for part in stage),
        "flops": sum(part.forward.flops for stage in found for part in stage),
        "bytes": [
            communication.of_step(args, layout, stage, r, count) for r, stage in enumerate(found)
        ],
        "groups": layout.extents(world),
    }


def real(rank: int, flags: list[str], world: int, port: int) -> dict[str, Any]:
    """One step of the run itself on this rank: its parameters, bytes held and communicated."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank))
    os.environ.update(WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    args = validate(parse(flags), world)
    args.rank = args.local_rank = rank
    args.padded_vocab_size = args.vocab_size
    with process_groups(args):
        run = job(args, args.global_batch_size // args.micro_batch_size)
        counted = count_collectives(group_names(), SMALL)
        run.loss_of_step(0)
        optimizer = run.make_optimizer()
        optimizer.step()
        parameters = [p for chunk in run.chunks for p in chunk.module.parameters()]
        buffers = [b for c in run.chunks for b in (*c.buffers, *c.expert_parallel_buffers)]
        return {
            "stage": ps.get_pipeline_model_parallel_rank(),
            "parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "tensors": len(parameters),
            "buckets": sum(len(buffer.buckets) for buffer in buffers),
            "weight bytes": sum(p.numel() * p.element_size() for p in parameters),
            "gradient bytes": sum(p.main_grad.nbytes for p in parameters if p.requires_grad),
            "optimizer bytes": optimizer_bytes(optimizer),
            "bytes": counted,
        }


def optimizer_bytes(optimizer: Any) -> int:
    """Bytes of what Megatron's optimizer keeps: states, and fp32 copies of bf16 weights."""
    size = 0
    for one in getattr(optimizer, "chained_optimizers", [optimizer]):
        for group in one.optimizer.param_groups:
            for parameter in group["params"]:
                states = one.optimizer.state[parameter].values()
                size += parameter.numel() * parameter.element_size()
                size += sum(s.nbytes for s in states if torch.is_tensor(s) and s.dim())
    return size


def saved(rank: int, flags: list[str]) -> int:
    """Bytes that autograd saves in a real forward pass, parameters apart."""
    args = validate(parse(flags), 1)
    storages: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with process_groups(args):
        [chunk] = job(args, 1).chunks
        own = {p.untyped_storage().data_ptr() for p in chunk.module.parameters()}
        tokens = torch.zeros(args.micro_batch_size, args.seq_length, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            chunk(tokens, tokens.clone(), None, labels=tokens.clone())
        return sum(s.nbytes() for key, s in storages.items() if key not in own)


def total_of(rank: int, flags: list[str]) -> int:
    """Parameters of the whole model, built for real."""
    args = validate(parse(flags), 1)
    with process_groups(args):
        [chunk] = job(args, 1).chunks
        return sum(p.numel() for p in chunk.module.parameters())
