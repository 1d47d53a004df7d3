"""Loss, gradients and weights of one model in two layouts, parameter by parameter.

Weights and gradients travel between layouts as Megatron checkpoints of the model; a checkpoint of
gradients is one whose tensors are the gradients. So every rank compares its own part of every
parameter, replicas too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core import parallel_state as ps
from megatron.core.distributed import DistributedDataParallel
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.utils import get_batch_on_this_cp_rank
from torch import Tensor

from helm_megatron.verify.result import Comparison, Difference, Run

NOISE = 0.1
# Of a parameter's type, by which two trained values may differ.
ROUNDINGS = 4
Chunks = list[DistributedDataParallel]
# Output of the last stage and labels, both `[b, s, ..]`, to the loss of every token.
LossOf = Callable[[Tensor, Tensor], Tensor]


def difference(name: str, got: Tensor, expected: Tensor) -> Difference:
    """Of two tensors of one shape, measured against the largest entry of the expected."""
    got, expected = got.detach().double(), expected.detach().double()
    return Difference(name, float((got - expected).abs().max()), float(expected.abs().max()))


@torch.no_grad()
def perturb(chunks: Chunks) -> None:
    """Move every parameter off the value it is initialized with, often 0 or 1."""
    random = torch.Generator().manual_seed(0)
    for chunk in chunks:
        for parameter in chunk.module.parameters():
            noise = torch.randn(parameter.shape, generator=random, dtype=torch.float32)
            parameter += NOISE * noise.to(parameter)


def microbatches(
    seed: int, vocabulary: int, sequence: int, size: int, count: int
) -> list[Iterator[Tensor]]:
    """This data-parallel rank's share of `count` random microbatches, `[size, sequence + 1]` each.

    They are dealt out in turn; which rank has which does not matter to their mean. One iterator for
    every model chunk of this rank.
    """
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocabulary, (count * size, sequence + 1), generator=random)
    rank, ranks = ps.get_data_parallel_rank(), ps.get_data_parallel_world_size()
    mine = list(tokens.to(torch.cuda.current_device()).split(size))[rank::ranks]
    chunks = ps.get_virtual_pipeline_model_parallel_world_size() or 1
    return [iter(mine) for _ in range(chunks)]


def loss_and_gradients(
    chunks: Chunks,
    data: list[Iterator[Tensor]],
    sequence: int,
    size: int,
    count: int,
    loss_of: LossOf | None = None,
) -> float:
    """Run Megatron's schedule on one global batch of `count` microbatches of `size` sequences.

    Leaves the reduced gradients in the buffers of the chunks. Without `loss_of` the model computes
    the loss. Returns the mean loss, the same on every rank.
    """

    def forward_step(iterator: Iterator[Tensor], chunk: torch.nn.Module) -> tuple[Tensor, Any]:
        tokens = next(iterator)
        inputs, labels, positions = _share_of_sequence(tokens)

        def sum_of_losses(output: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            losses = output if loss_of is None else loss_of(output, labels)
            loss = losses.sum()
            # The schedule divides the loss it is given in place.
            report = {"loss": loss.detach().clone()}
            return loss, torch.tensor(losses.numel(), device=loss.device), report

        return chunk(
            inputs, positions, None, labels=labels if loss_of is None else None
        ), sum_of_losses

    for chunk in chunks:
        chunk.zero_grad_buffer()
    losses = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=data if len(chunks) > 1 else data[0],
        model=chunks,
        num_microbatches=count // ps.get_data_parallel_world_size(),
        seq_length=sequence,
        micro_batch_size=size,
        forward_only=False,
    )
    # Only the last pipeline stage has losses.
    total = torch.tensor([float(x["loss"]) for x in losses], dtype=torch.float64).sum()
    total = total.to(torch.cuda.current_device())
    for group in (ps.get_pipeline_model_parallel_group(), ps.get_data_parallel_group(True)):
        dist.all_reduce(total, group=group)
    return float(total) / (count * size * sequence)


def _share_of_sequence(tokens: Tensor) -> list[Tensor]:
    """Inputs, labels and positions of this context-parallel rank's tokens, of `[b, s + 1]`."""
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    positions = torch.arange(inputs.shape[1], device=tokens.device).repeat(len(tokens), 1)
    batch = {"tokens": inputs, "labels": labels, "position_ids": positions}
    group = ps.get_context_parallel_group()
    return list(get_batch_on_this_cp_rank(batch, is_hybrid_cp=False, cp_group=group).values())


def gradients(chunks: Chunks) -> dict[torch.nn.Parameter, Tensor]:
    """The reduced gradient of every parameter of this rank."""
    for chunk in chunks:
        for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers):
            if buffer.ddp_config.use_distributed_optimizer:
                # Each rank holds the sum for its share of the buffer only.
                for bucket in buffer.buckets:
                    group = buffer.data_parallel_group
                    share = bucket.grad_data.chunk(group.size())[group.rank()].clone()
                    dist.all_gather_into_tensor(bucket.grad_data, share, group=group)
    return {
        parameter: parameter.main_grad.clone()
        for chunk in chunks
        for parameter in chunk.module.parameters()
        if parameter.requires_grad
    }


def state_of(chunks: Chunks) -> dict[str, Any]:
    """The sharded state dict of this rank's chunks, as Megatron's checkpoints have it."""
    metadata = {"dp_cp_group": ps.get_data_parallel_group(with_context_parallel=True)}
    return {
        f"model{i}": chunk.module.sharded_state_dict(metadata=metadata)
        for i, chunk in enumerate(chunks)
    }


def save(chunks: Chunks, directory: Path) -> None:
    """Write a checkpoint of the model's tensors."""
    if dist.get_rank() == 0:
        directory.mkdir()
    dist.barrier()
    dist_checkpointing.save(state_of(chunks), str(directory))


def load(chunks: Chunks, directory: Path) -> None:
    """Read all of the model's tensors from a checkpoint of any layout."""
    state = dist_checkpointing.load(state_of(chunks), str(directory))
    for i, chunk in enumerate(chunks):
        chunk.module.load_state_dict(state[f"model{i}"], strict=True)


def named_tensors(chunks: Sequence[DistributedDataParallel]) -> list[tuple[str, Tensor]]:
    """Saved parameters and buffers of this rank's chunks, layers by their global index."""
    found: list[tuple[str, Tensor]] = []
    for chunk in chunks:
        # In low precision Megatron's wrapper lies around the model.
        module = getattr(chunk.module, "module", chunk.module)
        offsets = {
            f"{name}.": layer.layer_number - 1
            for name, layer in module.named_modules()
            if name.rsplit(".", 2)[-2:-1] == ["layers"]
        }
        saved = module.state_dict(keep_vars=True)
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if name in saved:
                found.append((_global_name(name, offsets), tensor))
    return found


def _global_name(name: str, offsets: dict[str, int]) -> str:
    for prefix, number in offsets.items():
        if name.startswith(prefix):
            layers = prefix.rstrip(".").rsplit(".", 1)[0]
            return f"{layers}.{number}.{name.removeprefix(prefix)}"
    return name


def connect_overlap(config: Any, chunks: Chunks, align_grad_reduce: bool = True) -> None:
    """What Megatron's loop sets for reductions that overlap the backward pass.

    Gathering parameters in the forward pass begins after `train`'s first step, as in that loop.
    """
    ddp_config = chunks[0].ddp_config
    if ddp_config.overlap_grad_reduce:
        no_sync = [chunk.no_sync for chunk in chunks]
        config.no_sync_func = no_sync if len(chunks) > 1 else no_sync[0]
        if align_grad_reduce:
            start_sync = [chunk.start_grad_sync for chunk in chunks]
            config.grad_sync_func = start_sync if len(chunks) > 1 else start_sync[0]
    if ddp_config.overlap_param_gather:
        for chunk in chunks:
            chunk.disable_forward_pre_hook(param_sync=False)


def train(
    chunks: Chunks, optimizer: Any, loss_of_step: Callable[[int], float], steps: int
) -> list[list[float]]:
    """Loss and gradient norm of each step of one of Megatron's optimizers.

    `loss_of_step(i)` leaves the gradients of step i.
    """
    overlapped = chunks[0].ddp_config.overlap_param_gather
    record = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of_step(step)
        _, norm, _ = optimizer.step()
        record.append([loss, float(norm)])
        if overlapped and step == 0:
            for chunk in chunks:
                chunk.enable_forward_pre_hook()
    if overlapped:
        for chunk in chunks:
            chunk.disable_forward_pre_hook(param_sync=True)
    return record


@dataclass(frozen=True)
class Job:
    """A model in the layout of the present process groups, and how to run it.

    `loss_of_step(i)` leaves the gradients of the global batch i in the chunks. `from_scratch` is a
    run from initial values, which are compared too; else none of them stays what it is.
    """

    chunks: Chunks
    loss_of_step: Callable[[int], float]
    make_optimizer: Callable[[], Any]
    steps: int
    from_scratch: bool = False

    def train(self) -> list[list[float]]:
        """Loss and gradient norm of each step."""
        if not self.steps:
            return []
        return train(self.chunks, self.make_optimizer(), self.loss_of_step, self.steps)


def write_reference(job: Job, directory: Path) -> Run:
    """Run the model that others are compared with; its checkpoints go to the directory."""
    chunks = job.chunks
    if not job.from_scratch:
        perturb(chunks)
    save(chunks, directory / "weights")
    loss = job.loss_of_step(0)
    with torch.no_grad():
        for parameter, gradient in gradients(chunks).items():
            parameter.copy_(gradient)
    save(chunks, directory / "gradients")
    load(chunks, directory / "weights")
    training = job.train()
    save(chunks, directory / "trained")
    return Run(loss, training)


def compare(job: Job, directory: Path) -> Comparison:
    """Run the model from the reference's weights, and compare with what the reference saved."""
    chunks = job.chunks
    own = [tensor.detach().clone() for _, tensor in named_tensors(chunks)]
    load(chunks, directory / "weights")
    initial = [
        difference(name, ours, theirs)
        for (name, theirs), ours in zip(named_tensors(chunks), own, strict=True)
        if job.from_scratch
    ]
    loss = job.loss_of_step(0)
    found = gradients(chunks)
    load(chunks, directory / "gradients")
    differences = [
        difference(name, found[tensor], tensor)
        for name, tensor in named_tensors(chunks)
        if isinstance(tensor, torch.nn.Parameter) and tensor.requires_grad
    ]
    load(chunks, directory / "weights")
    training = job.train()
    trained = trained_differences(chunks, directory)
    return Comparison(Run(loss, training), differences, trained, initial)


def trained_differences(chunks: Chunks, directory: Path) -> list[Difference]:
    """Of the trained tensors, measured against the way they went; the tensors are lost.

    What a tensor's own type can just not resolve is no difference.
    """
    got = [tensor.detach().clone() for _, tensor in named_tensors(chunks)]
    load(chunks, directory / "trained")
    expected = [tensor.detach().clone() for _, tensor in named_tensors(chunks)]
    load(chunks, directory / "weights")
    found = []
    for (name, start), ours, theirs in zip(named_tensors(chunks), got, expected, strict=True):
        epsilon = torch.finfo(theirs.dtype).eps if theirs.is_floating_point() else 0
        rounding = ROUNDINGS * epsilon * theirs.double().abs()
        off = ((ours.double() - theirs.double()).abs() - rounding).clamp_min(0)
        way = (theirs.double() - start.detach().double()).abs()
        found.append(Difference(name, float(off.max()), float(way.max())))
    return found
