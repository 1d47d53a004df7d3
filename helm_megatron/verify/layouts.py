"""Model and optimizer of a run's flags, one layout after another in one process."""

from __future__ import annotations

import contextlib
import io
import os
from argparse import Namespace
from typing import Any

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.training.training import get_megatron_ddp_config, get_megatron_optimizer_config

from helm_megatron.arguments import config_from_args
from helm_megatron.builder import model_config_from_args
from helm_megatron.moe.bias import finalize
from helm_megatron.optim.joined import get_optimizer
from helm_megatron.verify import compare
from helm_megatron.verify.compare import Job

STEPS = 3
STEPS_FROM_SCRATCH = 40
# Large enough to tell in fp32. Adam's first steps have the size of the rate however small the
# gradient, and the sign of its rounding: hence an epsilon of the size of clipped gradients.
OPTIMIZER = {"lr": 1e-2, "min_lr": 1e-2, "adam_eps": 1e-2}


def job(args: Namespace, count: int, from_scratch: bool = False) -> Job:
    """This rank's part of the run that the flags describe, with `count` microbatches a batch."""
    config = config_from_args(args)
    config.finalize_model_grads_func = finalize
    model_config = model_config_from_args(args, config, args.vocab_size)
    builder = model_config.get_builder_cls()(model_config)
    with contextlib.redirect_stdout(io.StringIO()):  # it counts parameters
        chunks = builder.build_distributed_models(
            pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
            ddp_config=get_megatron_ddp_config(args),
            data_parallel_random_init=False,
        )
    compare.connect_overlap(config, chunks, args.align_grad_reduce)

    def loss_of_step(step: int) -> float:
        shape = args.seq_length, args.micro_batch_size, count
        data = compare.microbatches(step, args.vocab_size, *shape)
        return compare.loss_and_gradients(chunks, data, *shape)

    def make_optimizer() -> Any:
        optimizer_config, overrides = get_megatron_optimizer_config(args)
        vars(optimizer_config).update(OPTIMIZER)
        optimizer = get_optimizer(
            optimizer_config,
            chunks,
            config_overrides=overrides,
            use_gloo_process_groups=args.use_gloo_process_groups,
        )
        config.grad_scale_func = optimizer.scale_loss
        return optimizer

    steps = STEPS_FROM_SCRATCH if from_scratch else STEPS
    return Job(chunks, loss_of_step, make_optimizer, steps, from_scratch)


def is_first() -> bool:
    """Whether this is rank 0 of the whole run, whatever groups there are."""
    return int(os.environ.get("RANK", "0")) == 0
