"""What the processes of a layout do: build a test model and compare it with one process's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from helm_megatron import megatron_patches

megatron_patches.apply()

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from cases import GLOBAL_BATCH, MICRO_BATCH, SEQUENCE, VOCABULARY, Layout, Model  # noqa: E402
from megatron.core import parallel_state as ps  # noqa: E402
from megatron.core import tensor_parallel  # noqa: E402
from megatron.core.distributed import (  # noqa: E402
    DistributedDataParallel,
    DistributedDataParallelConfig,
)
from megatron.core.optimizer import OptimizerConfig  # noqa: E402
from megatron.core.tensor_parallel.mappings import (  # noqa: E402
    gather_from_tensor_model_parallel_region,
)
from megatron.core.transformer.moe.moe_logging import destroy_moe_metrics_tracker  # noqa: E402
from megatron.core.utils import get_batch_on_this_cp_rank  # noqa: E402

from helm_megatron.analysis import embedding  # noqa: E402
from helm_megatron.config import HelmSettings  # noqa: E402
from helm_megatron.layers import attention  # noqa: E402
from helm_megatron.layers.context_parallel import gather_sequence  # noqa: E402
from helm_megatron.model import build_model  # noqa: E402
from helm_megatron.moe.bias import finalize  # noqa: E402
from helm_megatron.moe.experts import MiceExperts  # noqa: E402
from helm_megatron.optim.joined import get_optimizer  # noqa: E402
from helm_megatron.transformer_config import (  # noqa: E402
    HelmMLATransformerConfig,
    HelmTransformerConfig,
)
from helm_megatron.verify import compare as verify  # noqa: E402


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


def build(
    model: Model, layout: Layout, token_count: int = VOCABULARY
) -> list[DistributedDataParallel]:
    """This rank's part of the model: one chunk, or several with interleaved pipelining.

    The vocabulary is padded to a multiple of twice the tensor-parallel size.
    """
    dtype = getattr(torch, model.dtype)
    make = HelmMLATransformerConfig if model.latent else HelmTransformerConfig
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
        pipeline_model_parallel_layout=layout.pipeline_layout,
        # Interleaving sends both ways between two stages at once; a batch would mix them up, and
        # Megatron's command line refuses it.
        overlap_p2p_comm=layout.virtual is not None,
        batch_p2p_comm=layout.virtual is None,
        expert_model_parallel_size=layout.expert,
        expert_tensor_parallel_size=layout.expert_tensor,
        sequence_parallel=layout.sequence,
        moe_token_dispatcher_type=layout.dispatcher,
        finalize_model_grads_func=finalize,
        helm=HelmSettings(**model.helm),
    )
    ddp_config = DistributedDataParallelConfig(
        use_distributed_optimizer=layout.distributed_optimizer,
        overlap_grad_reduce=layout.overlap,
        overlap_param_gather=layout.overlap,
        # Several buckets, which only overlapped reduction has.
        bucket_size=1500 if layout.overlap else None,
    )
    chunks = []
    for stage in range(layout.virtual) if layout.virtual else [None]:
        ends = {"ignore_virtual": stage is None, "vp_stage": stage}
        chunk = build_model(
            config,
            -(-token_count // (2 * layout.tensor)) * 2 * layout.tensor,
            SEQUENCE,
            pre_process=ps.is_pipeline_first_stage(**ends),
            post_process=ps.is_pipeline_last_stage(**ends),
            vp_stage=stage,
            token_count=token_count,
            position_embedding_type="rope",
            **model.arguments,
        )
        chunks.append(DistributedDataParallel(config, ddp_config, chunk))
    verify.connect_overlap(config, chunks)
    return chunks


def loss_and_gradients(
    model: Model,
    chunks: list[DistributedDataParallel],
    step: int,
    token_count: int = VOCABULARY,
) -> float:
    """The mean loss of the step's global batch, whose gradients are left in the chunks."""
    count = GLOBAL_BATCH // MICRO_BATCH
    data = verify.microbatches(step, token_count, SEQUENCE, MICRO_BATCH, count)
    return verify.loss_and_gradients(
        chunks, data, SEQUENCE, MICRO_BATCH, count, gathered_loss if model.own_loss else None
    )


def gathered_loss(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Torch's cross entropy of every token, in the type of the logits."""
    logits = gather_from_tensor_model_parallel_region(output)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")


def job(model: Model, layout: Layout, token_count: int = VOCABULARY) -> verify.Job:
    """This rank's part of a run of the model."""
    chunks = build(model, layout, token_count)
    config = OptimizerConfig(
        optimizer="adam",
        lr=1e-2,
        min_lr=1e-2,
        # Of the size of the gradients: Adam's first steps would have the size of the rate however
        # small the gradient, and the sign of its rounding.
        adam_eps=1e-2,
        weight_decay=0.1,
        clip_grad=1.0,
        use_distributed_optimizer=layout.distributed_optimizer,
        overlap_param_gather=layout.overlap,
    )
    return verify.Job(
        chunks,
        lambda step: loss_and_gradients(model, chunks, step, token_count),
        lambda: get_optimizer(config, chunks),
        model.training_steps,
    )


def reference(rank: int, model: Model, layout: Layout, directory: Path) -> verify.Run:
    """The one-process model: write its weights and gradients, return loss and training."""
    directory.mkdir()
    with layout_of(rank, layout, directory / "store"):
        return verify.write_reference(job(model, layout), directory)


def compare(
    rank: int, model: Model, layout: Layout, directory: Path, store: Path
) -> verify.Comparison:
    """The same of another layout, with its differences from the reference."""
    with layout_of(rank, layout, store):
        return verify.compare(job(model, layout), directory)


def attention_in_bf16(rank: int, model: Model, layout: Layout, store: Path) -> np.ndarray:
    """The output of one core attention for all tokens; those far from the start are far out."""
    # Times in bf16 lanes, as a GPU's kernels have them; the CPU would compute in fp32.
    in_lanes = mock.patch.object(attention.LorentzAttention, "computed_in", lambda self, x: x)
    with layout_of(rank, layout, store), in_lanes:
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
        # No tensor: its memory would end with this process.
        return gather_sequence(out, group).detach().float().numpy()


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


def save_weights(rank: int, model: Model, layout: Layout, directory: Path) -> None:
    """Write the one-process model's weights, none of them trivial, as `reference` does."""
    directory.mkdir()
    with layout_of(rank, layout, directory / "store"):
        chunks = build(model, layout)
        verify.perturb(chunks)
        verify.save(chunks, directory / "weights")


def embedding_geometry(
    rank: int, model: Model, layout: Layout, directory: Path, store: Path, vocab_size: int
) -> tuple[list[float], np.ndarray | None]:
    """What the monitor logs of the embedding, and this rank's rows of it."""
    with layout_of(rank, layout, store):
        chunks = build(model, layout)
        verify.load(chunks, directory / "weights")
        measured = embedding.measure(chunks, chunks[0].config.helm, vocab_size).tolist()
        table = chunks[0].module.embedding.word_embeddings if chunks[0].module.pre_process else None
        return measured, None if table is None else table.weight.detach().numpy()


def cut_rows(rank: int, model: Model, layout: Layout, store: Path) -> list[int]:
    """The rows of the table of points that the shards of the distributed optimizer cut."""
    with layout_of(rank, layout, store):
        chain = job(model, layout).make_optimizer()
        tables = [t for each in chain.chained_optimizers for t in each.optimizer.tables]
        return [row for table in tables for row in table.shard.cut]


def save_again(rank: int, model: Model, layout: Layout, directory: Path, again: Path) -> None:
    """Load the reference's weights and save them from this layout."""
    with layout_of(rank, layout, again.with_suffix(".store")):
        chunks = build(model, layout)
        verify.load(chunks, directory / "weights")
        verify.save(chunks, again)


def differing_tensors(
    rank: int, model: Model, layout: Layout, directory: Path, again: Path
) -> list[str]:
    """Names of the tensors that this layout loads differently from the two checkpoints."""
    with layout_of(rank, layout, again.with_suffix(".store2")):
        chunks = build(model, layout)
        verify.load(chunks, directory / "weights")
        loaded = [tensor.clone() for _, tensor in verify.named_tensors(chunks)]
        verify.load(chunks, again)
        again_loaded = verify.named_tensors(chunks)
        pairs = zip(again_loaded, loaded, strict=True)
        return [name for (name, tensor), before in pairs if not torch.equal(tensor, before)]


def from_scratch(
    rank: int, model: Model, layout: Layout, token_count: int, directory: Path, store: Path
) -> tuple[list[str], list[list[float]]]:
    """Names of the tensors that begin otherwise than those of the checkpoint in the directory, and
    loss and gradient norm of each step.

    One process writes the checkpoint. Rows that pad the vocabulary are left out.
    """
    with layout_of(rank, layout, store):
        run = job(model, layout, token_count)
        if layout.world == 1:
            verify.save(run.chunks, directory)
        own = [tensor.detach().clone() for _, tensor in verify.named_tensors(run.chunks)]
        verify.load(run.chunks, directory)
        differing = []
        for (name, tensor), ours in zip(verify.named_tensors(run.chunks), own, strict=True):
            if name.startswith(("embedding.", "output_layer.")):
                first = ps.get_tensor_model_parallel_rank() * len(ours)
                tensor.data[max(token_count - first, 0) :] = 0
                ours[max(token_count - first, 0) :] = 0
            if not torch.equal(tensor, ours):
                differing.append(name)
        return differing, run.train()
