"""Layouts: how a model is cut over GPUs, and which cuts a model and a cluster allow."""

from __future__ import annotations

import itertools
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from helm_megatron.plan.cluster import Cluster

MICRO_BATCHES = (1, 2, 4, 8)
VIRTUAL = (1, 2, 4)
# Context parallelism is not tried where it leaves a rank fewer tokens of a sequence.
LEAST_TOKENS = 4096


@dataclass(frozen=True)
class Layout:
    """Sizes of the parallel groups, chunks of a pipeline stage, sequences of a micro-batch."""

    tensor: int
    pipeline: int
    context: int
    expert: int
    expert_tensor: int
    virtual: int
    micro_batch: int
    recompute: bool

    @classmethod
    def of(cls, args: Namespace) -> Layout:
        """The layout of validated flags."""
        return cls(
            tensor=args.tensor_model_parallel_size,
            pipeline=args.pipeline_model_parallel_size,
            context=args.context_parallel_size,
            expert=args.expert_model_parallel_size,
            expert_tensor=args.expert_tensor_parallel_size,
            virtual=args.virtual_pipeline_model_parallel_size or 1,
            micro_batch=args.micro_batch_size,
            recompute=args.recompute_granularity == "full",
        )

    def attributes(self, args: Namespace) -> dict[str, Any]:
        """The layout as attributes of parsed flags."""
        interleaved = self.virtual > 1
        per_chunk = args.num_layers // (self.pipeline * self.virtual) if interleaved else None
        full = self.recompute
        return {
            "tensor_model_parallel_size": self.tensor,
            "sequence_parallel": self.tensor > 1,
            "pipeline_model_parallel_size": self.pipeline,
            "context_parallel_size": self.context,
            "expert_model_parallel_size": self.expert,
            "expert_tensor_parallel_size": self.expert_tensor,
            "num_layers_per_virtual_pipeline_stage": per_chunk,
            "num_virtual_stages_per_pipeline_rank": None,
            "pipeline_model_parallel_layout": None,
            "decoder_first_pipeline_num_layers": None,
            "decoder_last_pipeline_num_layers": None,
            "micro_batch_size": self.micro_batch,
            "recompute_granularity": "full" if full else None,
            "recompute_method": "uniform" if full else None,
            "recompute_num_layers": 1 if full else None,
            "overlap_p2p_comm": interleaved,
        }

    def flags(self, args: Namespace) -> str:
        """The layout as flags for the command line."""
        words = [f"--tensor-model-parallel-size {self.tensor}"]
        words += ["--sequence-parallel"] * (self.tensor > 1)
        for name, size in asdict(self).items():
            if name in ("pipeline", "context", "expert") and size > 1:
                words.append(f"--{name}-model-parallel-size {size}")
        if self.expert_tensor != self.tensor:
            words.append(f"--expert-tensor-parallel-size {self.expert_tensor}")
        if self.virtual > 1:
            chunk = args.num_layers // (self.pipeline * self.virtual)
            words.append(f"--num-layers-per-virtual-pipeline-stage {chunk}")
        words.append(f"--micro-batch-size {self.micro_batch}")
        if self.recompute:
            words.append("--recompute-granularity full --recompute-method uniform")
            words.append("--recompute-num-layers 1")
        return " ".join(words).replace("context-model", "context")

    def data(self, gpus: int) -> int:
        """Replicas of the model: the data-parallel size."""
        return gpus // (self.tensor * self.pipeline * self.context)

    def microbatches(self, args: Namespace, gpus: int) -> int:
        """Micro-batches of a step for each replica; 0 where the global batch does not divide."""
        batch, each = args.global_batch_size, self.data(gpus) * self.micro_batch
        return batch // each if each and batch % each == 0 else 0

    def extents(self, gpus: int) -> dict[str, tuple[int, int]]:
        """Size of each group, and the number of neighboring ranks that it is spread over.

        Megatron's order: tensor, context, expert, data, pipeline.
        """
        stage = gpus // self.pipeline
        experts = self.expert * self.expert_tensor
        return {
            "tp": (self.tensor, self.tensor),
            "cp": (self.context, self.tensor * self.context),
            "tp-cp": (self.tensor * self.context, self.tensor * self.context),
            "ep": (self.expert, experts),
            "etp": (self.expert_tensor, self.expert_tensor),
            "tp-ep": (experts, experts),
            "dp": (stage // self.tensor, stage),
            "expert-dp": (stage // experts, stage),
            "pp": (self.pipeline, gpus),
            "embedding": (min(self.pipeline, 2), gpus),
        }


ONE = Layout(1, 1, 1, 1, 1, 1, 1, False)


def candidates(args: Namespace, cluster: Cluster) -> Iterator[Layout]:
    """Layouts whose sizes divide the model, the batch and the cluster."""
    gpus, experts = cluster.gpus, args.num_experts
    tensors = [t for t in divisors(gpus) if t <= cluster.gpus_per_node and tensor_divides(args, t)]
    pipelines = [p for p in divisors(gpus) if args.num_layers % p == 0]
    contexts = [c for c in divisors(gpus) if c == args.context_parallel_size or _context(args, c)]
    expert_sizes = [e for e in divisors(gpus) if experts % e == 0] if experts else [1]
    for tp, pp, cp, ep in itertools.product(tensors, pipelines, contexts, expert_sizes):
        if gpus % (tp * pp * cp) or gpus % (ep * pp):
            continue
        # Whole experts: cutting one over tensor-parallel ranks is for those without expert groups.
        expert_tensor = 1 if experts and ep > 1 else tp
        for virtual, size, recompute in itertools.product(VIRTUAL, MICRO_BATCHES, (False, True)):
            layout = Layout(tp, pp, cp, ep, expert_tensor, virtual, size, recompute)
            count = layout.microbatches(args, gpus)
            interleaves = virtual == 1 or (
                pp > 1 and args.num_layers % (pp * virtual) == 0 and count % pp == 0
            )
            if count and interleaves:
                yield layout


def divisors(n: int) -> list[int]:
    """The divisors of n, smallest first."""
    return [d for d in range(1, n + 1) if n % d == 0]


def tensor_divides(args: Namespace, tp: int) -> bool:
    """Whether heads, query groups and sharded widths can be cut into `tp`."""
    widths = [args.num_attention_heads, args.ffn_hidden_size, args.seq_length]
    if args.group_query_attention and not args.multi_latent_attention:
        widths.append(args.num_query_groups)
    if args.moe_shared_expert_intermediate_size:
        widths.append(args.moe_shared_expert_intermediate_size)
    return all(width % tp == 0 for width in widths)


def _context(args: Namespace, cp: int) -> bool:
    tokens = args.seq_length // cp
    return args.seq_length % (2 * cp) == 0 and (cp == 1 or tokens >= LEAST_TOKENS)
