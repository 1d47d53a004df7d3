"""What the processes of a layout do: build, load the same weights, take gradients, train.

Weights and gradients travel between layouts as Megatron checkpoints of the model; a checkpoint of
gradients is one whose tensors are the gradients. So every rank compares its own part of every
parameter, replicas too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helm_megatron import platform

platform.setup()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from cases import GLOBAL_BATCH, MICRO_BATCH, SEQUENCE, VOCABULARY, Layout, Model  # noqa: E402
from megatron.core import dist_checkpointing, tensor_parallel  # noqa: E402
from megatron.core import parallel_state as ps  # noqa: E402
from megatron.core.distributed import (  # noqa: E402
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer  # noqa: E402
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402
from megatron.core.tensor_parallel.mappings import (  # noqa: E402
    gather_from_tensor_model_parallel_region,
)
from megatron.core.transformer import MLATransformerConfig, TransformerConfig  # noqa: E402
from megatron.core.transformer.moe.moe_logging import destroy_moe_metrics_tracker  # noqa: E402
from megatron.core.utils import get_batch_on_this_cp_rank  # noqa: E402

from helm_megatron.config import HelmConfig, attach  # noqa: E402
from helm_megatron.layers.context_parallel import gather_sequence  # noqa: E402
from helm_megatron.model import build_model  # noqa: E402
from helm_megatron.moe.experts import MiceExperts  # noqa: E402

NOISE = 0.1


@contextlib.contextmanager
def layout_of(rank: int, layout: Layout, store: Path) -> Iterator[None]:
    """Megatron's process groups for the layout, taken down at the end."""
    file_store = dist.FileStore(str(store), layout.world)
    dist.init_process_group("gloo", store=file_store, rank=rank, world_size=layout.world)
    try:
        ps.initialize_model_parallel(
            layout.tensor,
            layout.pipeline,
            layout.virtual,
            context_parallel_size=layout.context,
            expert_model_parallel_size=layout.expert,
            expert_tensor_parallel_size=layout.expert_tensor,
        )
        tensor_parallel.model_parallel_cuda_manual_seed(1, force_reset_rng=True)
        yield
    finally:
        destroy_moe_metrics_tracker()  # it has one entry for each layer of this model
        ps.destroy_model_parallel()
        dist.destroy_process_group()


def build(model: Model, layout: Layout) -> list[DistributedDataParallel]:
    """This rank's part of the model: one chunk, or several with interleaved pipelining."""
    dtype = getattr(torch, model.dtype)
    make = MLATransformerConfig if model.latent else TransformerConfig
    config = make(
        **model.config,
        **layout.recompute,
        activation_func=F.silu,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual,
        context_parallel_size=layout.context,
        expert_model_parallel_size=layout.expert,
        expert_tensor_parallel_size=layout.expert_tensor,
        sequence_parallel=layout.sequence,
        moe_token_dispatcher_type=layout.dispatcher,
        finalize_model_grads_func=finalize_model_grads,
    )
    attach(config, HelmConfig(**model.helm))
    ddp_config = DistributedDataParallelConfig(
        use_distributed_optimizer=layout.distributed_optimizer
    )
    chunks = []
    for stage in range(layout.virtual) if layout.virtual else [None]:
        ends = {"ignore_virtual": stage is None, "vp_stage": stage}
        chunk = build_model(
            config,
            VOCABULARY,
            SEQUENCE,
            pre_process=ps.is_pipeline_first_stage(**ends),
            post_process=ps.is_pipeline_last_stage(**ends),
            vp_stage=stage,
            position_embedding_type="rope",
            **model.arguments,
        )
        chunks.append(DistributedDataParallel(config, ddp_config, chunk))
    return chunks


def batches(layout: Layout, step: int) -> list[Iterator[torch.Tensor]]:
    """This data-parallel rank's microbatches of the step's global batch, for each chunk."""
    random = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCABULARY, (GLOBAL_BATCH, SEQUENCE + 1), generator=random)
    # The microbatches are dealt out in turn; which rank has which does not matter to their mean.
    mine = list(tokens.split(MICRO_BATCH))[ps.get_data_parallel_rank() :: layout.data]
    return [iter(mine) for _ in range(layout.virtual or 1)]


def loss_and_gradients(
    model: Model, layout: Layout, chunks: list[DistributedDataParallel], step: int
) -> float:
    """Megatron's schedule on one global batch; the mean loss, the same on every rank."""

    def forward_step(iterator: Iterator, chunk: torch.nn.Module) -> tuple[torch.Tensor, Any]:
        tokens = next(iterator)
        inputs, labels, positions = _share_of_sequence(tokens)
        given = None if model.own_loss else labels

        def mean_loss(output: torch.Tensor) -> tuple[torch.Tensor, dict]:
            if model.own_loss:
                logits = gather_from_tensor_model_parallel_region(output)
                output = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
            # Megatron sums what context-parallel ranks have of the mean.
            loss = output.mean() / layout.context
            # The schedule divides the loss it is given in place.
            return loss, {"loss": loss.detach().clone()}

        return chunk(inputs, positions, None, labels=given), mean_loss

    for chunk in chunks:
        chunk.zero_grad_buffer()
    losses = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=batches(layout, step),
        model=chunks,
        num_microbatches=GLOBAL_BATCH // MICRO_BATCH // layout.data,
        seq_length=SEQUENCE,
        micro_batch_size=MICRO_BATCH,
        forward_only=False,
    )
    # Only the last pipeline stage has losses.
    mean = torch.tensor([float(x["loss"]) for x in losses], dtype=torch.float64).sum()
    for group in (ps.get_pipeline_model_parallel_group(), ps.get_data_parallel_group(True)):
        dist.all_reduce(mean, group=group)
    return float(mean) / (GLOBAL_BATCH // MICRO_BATCH)


def _share_of_sequence(tokens: torch.Tensor) -> list[torch.Tensor]:
    """Inputs, labels and positions of this context-parallel rank's tokens, of `[b, s + 1]`."""
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    positions = torch.arange(SEQUENCE).repeat(len(tokens), 1)
    batch = {"tokens": inputs, "labels": labels, "position_ids": positions}
    group = ps.get_context_parallel_group()
    return list(get_batch_on_this_cp_rank(batch, is_hybrid_cp=False, cp_group=group).values())


def gradients(chunks: list[DistributedDataParallel]) -> dict[torch.nn.Parameter, torch.Tensor]:
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


def state_of(chunks: list[DistributedDataParallel]) -> dict[str, Any]:
    """The sharded state dict of this rank's chunks, as Megatron's checkpoints have it."""
    metadata = {"dp_cp_group": ps.get_data_parallel_group(with_context_parallel=True)}
    return {
        f"model{i}": chunk.module.sharded_state_dict(metadata=metadata)
        for i, chunk in enumerate(chunks)
    }


def save(chunks: list[DistributedDataParallel], directory: Path) -> None:
    """Write a checkpoint of the model's tensors."""
    if dist.get_rank() == 0:
        directory.mkdir()
    dist.barrier()
    dist_checkpointing.save(state_of(chunks), str(directory))


def load(chunks: list[DistributedDataParallel], directory: Path) -> None:
    """Read all of the model's tensors from a checkpoint of any layout."""
    state = dist_checkpointing.load(state_of(chunks), str(directory))
    for i, chunk in enumerate(chunks):
        chunk.module.load_state_dict(state[f"model{i}"], strict=True)


def train(model: Model, layout: Layout, chunks: list[DistributedDataParallel]) -> list[list[float]]:
    """Loss and gradient norm of each step of Megatron's Adam."""
    if not model.training_steps:
        return []
    config = OptimizerConfig(
        optimizer="adam",
        lr=3e-3,
        min_lr=3e-3,
        weight_decay=0.1,
        clip_grad=1.0,
        use_distributed_optimizer=layout.distributed_optimizer,
    )
    optimizer = get_megatron_optimizer(config, chunks)
    record = []
    for step in range(model.training_steps):
        optimizer.zero_grad()
        loss = loss_and_gradients(model, layout, chunks, step)
        _, norm, _ = optimizer.step()
        record.append([loss, float(norm)])
    return record


@torch.no_grad()
def perturb(chunks: list[DistributedDataParallel]) -> None:
    """Move every parameter off the value it is initialized with, often 0 or 1."""
    random = torch.Generator().manual_seed(0)
    for chunk in chunks:
        for parameter in chunk.module.parameters():
            parameter += NOISE * torch.randn(parameter.shape, generator=random)


def reference(rank: int, model: Model, layout: Layout, directory: Path) -> dict[str, Any]:
    """The one-process model: write its weights and gradients, return loss and training."""
    directory.mkdir()
    with layout_of(rank, layout, directory / "store"):
        chunks = build(model, layout)
        perturb(chunks)
        save(chunks, directory / "weights")
        loss = loss_and_gradients(model, layout, chunks, 0)
        found = gradients(chunks)
        with torch.no_grad():
            for parameter, gradient in found.items():
                parameter.copy_(gradient)
        save(chunks, directory / "gradients")
        load(chunks, directory / "weights")
        return {"loss": loss, "training": train(model, layout, chunks)}


def compare(
    rank: int, model: Model, layout: Layout, directory: Path, store: Path
) -> dict[str, Any]:
    """The same of another layout, with the differences of its gradients from the reference's."""
    with layout_of(rank, layout, store):
        chunks = build(model, layout)
        load(chunks, directory / "weights")
        loss = loss_and_gradients(model, layout, chunks, 0)
        found = gradients(chunks)
        load(chunks, directory / "gradients")
        differences = []
        for i, chunk in enumerate(chunks):
            for name, parameter in chunk.module.named_parameters():
                if parameter.requires_grad:
                    error = float((found[parameter] - parameter).abs().max())
                    scale = float(parameter.abs().max())
                    differences.append((f"{i}.{name}", error, scale))
        load(chunks, directory / "weights")
        training = train(model, layout, chunks)
        return {"loss": loss, "differences": differences, "training": training}


def attention_in_bf16(rank: int, model: Model, layout: Layout, store: Path) -> torch.Tensor:
    """The output of one core attention for all tokens; those far from the start are far out."""
    with layout_of(rank, layout, store):
        [chunk] = build(model, layout)
        core = chunk.module.decoder.layers[0].self_attention.core_attention
        random = torch.Generator().manual_seed(0)
        heads, width = model.config["num_attention_heads"], core.v_channels
        qkv = torch.randn(3, 1, SEQUENCE, heads, width, generator=random)
        qkv *= torch.linspace(1, 4, SEQUENCE)[:, None, None]
        group = ps.get_context_parallel_group()
        batch = {"qkv": qkv.flatten(0, 1)}
        mine = get_batch_on_this_cp_rank(batch, is_hybrid_cp=False, cp_group=group)["qkv"]
        out = core(*mine.bfloat16().unsqueeze(2), None)
        return gather_sequence(out, group).detach().float()


def curvatures(rank: int, model: Model, layout: Layout, store: Path) -> list[float]:
    """The curvatures of all experts in the order of their global index."""
    with layout_of(rank, layout, store):
        [chunk] = build(model, layout)
        [experts] = [m for m in chunk.module.modules() if isinstance(m, MiceExperts)]
        mine = [float(expert.curvature()) for expert in experts.local_experts]
        group = ps.get_expert_model_parallel_group()
        everyone: list[Any] = [None] * group.size()
        dist.all_gather_object(everyone, mine, group=group)
        return [c for part in everyone for c in part]


def save_again(rank: int, model: Model, layout: Layout, directory: Path, again: Path) -> None:
    """Load the reference's weights and save them from this layout."""
    with layout_of(rank, layout, again.with_suffix(".store")):
        chunks = build(model, layout)
        load(chunks, directory / "weights")
        save(chunks, again)


def differing_tensors(
    rank: int, model: Model, layout: Layout, directory: Path, again: Path
) -> list[str]:
    """Names of the tensors that this layout loads differently from the two checkpoints."""
    with layout_of(rank, layout, again.with_suffix(".store2")):
        [chunk] = build(model, layout)
        load([chunk], directory / "weights")
        loaded = {name: tensor.clone() for name, tensor in _tensors(chunk)}
        load([chunk], again)
        return [name for name, tensor in _tensors(chunk) if not torch.equal(tensor, loaded[name])]


def _tensors(chunk: DistributedDataParallel) -> list[tuple[str, torch.Tensor]]:
    return [*chunk.module.named_parameters(), *chunk.module.named_buffers()]
