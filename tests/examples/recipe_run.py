"""Build what a recipe describes, on tensors without memory; imported by worker processes."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

from helm_megatron import megatron_patches

megatron_patches.apply()

from megatron.core import parallel_state as ps  # noqa: E402
from megatron.core.process_groups_config import ProcessGroupCollection  # noqa: E402
from megatron.training.argument_utils import gpt_config_from_args  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from helm_megatron.arguments import config_from_args  # noqa: E402
from helm_megatron.builder import HelmModelConfig  # noqa: E402
from helm_megatron.plan.cluster import Cluster  # noqa: E402
from helm_megatron.plan.estimate import estimate  # noqa: E402
from helm_megatron.plan.layout import ONE, Layout  # noqa: E402
from helm_megatron.plan.parts import PartsOf  # noqa: E402
from helm_megatron.plan.recipe import parse, validate  # noqa: E402
from helm_megatron.plan.shell import read  # noqa: E402
from helm_megatron.process_groups import process_groups  # noqa: E402

logging.disable(logging.WARNING)


def sizes(rank: int, recipe: Path, variables: dict[str, str]) -> dict[str, Any]:
    """The recipe in its own layout.

    `total` is the number of parameters of the model in one process; `sum` that of all ranks
    together, each parameter counted once; `memory` the estimate for the fullest GPU, in bytes.
    """
    gpus = int(variables["GPUS"])
    parsed = parse(read(recipe, variables))
    args = validate(parsed, gpus)
    tp = args.tensor_model_parallel_size
    multiple = args.make_vocab_size_divisible_by * tp
    # Megatron pads the vocabulary for the layout; the model in one process gets the same rows.
    args.padded_vocab_size = parsed.padded_vocab_size = -(-args.vocab_size // multiple) * multiple
    cluster, layout = Cluster(gpus), Layout.of(args)
    simple = validate(parsed, 1, **ONE.attributes(parsed))
    return {
        "total": estimate(simple, ONE, cluster, PartsOf(parsed)).parameters,
        "sum": sum(of_stage(args, stage) for stage in range(layout.pipeline)),
        "memory": estimate(simple, layout, cluster, PartsOf(parsed)).memory.total,
        "flags": parsed.geometry,
    }


def of_stage(args: Any, stage: int) -> int:
    """Parameters of all ranks of a pipeline stage, from those of its first; replicas count once."""
    args.rank = stage * args.world_size // args.pipeline_model_parallel_size
    args.use_gloo_process_groups, args.perform_initialization = False, False
    args.distributed_backend = "fake"
    counts: Counter[tuple[bool, bool]] = Counter()
    with process_groups(args), FakeTensorMode(allow_non_fake_inputs=True):
        model_config = gpt_config_from_args(args, config_from_args(args), HelmModelConfig)
        builder = model_config.get_builder_cls()(model_config)
        chunks = args.virtual_pipeline_model_parallel_size
        for chunk in range(chunks) if chunks else [None]:
            groups = ProcessGroupCollection.use_mpu_process_groups()
            model = builder.build_model(groups, vp_stage=chunk)
            for name, parameter in model.named_parameters():
                sharded = getattr(parameter, "tensor_model_parallel", False)
                counts[".experts." in name, sharded] += parameter.numel()
        experts = ps.get_expert_model_parallel_world_size()
        return (
            counts[False, False]
            + counts[False, True] * args.tensor_model_parallel_size
            + counts[True, False] * experts
            + counts[True, True] * experts * args.expert_tensor_parallel_size
        )
