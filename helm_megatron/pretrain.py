"""What `pretrain_helm.py` hands to `megatron.training.pretrain`: flags, model, data and loss."""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.enums import ModelType
from megatron.core.models.gpt import GPTModel
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.core.utils import get_attr_wrapped_model
from megatron.training import get_args, get_timers, pretrain
from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
from megatron.training.arguments import parse_and_validate_args, parse_args
from torch import Tensor

from helm_megatron import platform
from helm_megatron.analysis.monitor import Monitor
from helm_megatron.arguments import add_helm_args, config_from_args
from helm_megatron.builder import HelmModelConfig
from helm_megatron.checkpoint import reshard
from helm_megatron.checks import ArgumentError, check_args
from helm_megatron.data.batch import next_batch, train_valid_test_datasets


def add_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """HELM's flags, and defaults of Megatron's that suit this platform and attention."""
    add_helm_args(parser)
    # Attention is causal without a mask; one is built only to keep documents apart.
    parser.set_defaults(create_attention_mask_in_dataloader=False, **platform.cpu_defaults())
    for action in parser._actions:
        # A bare percent sign in one of Megatron 0.19's help texts makes `--help` fail.
        action.help = re.sub(r"(?<!%)%(?![%(])", "%%", action.help or "")
    return parser


def checked_args() -> argparse.Namespace:
    """The command line, or exit code 2 and one line that says what is wrong with it."""
    try:
        args = parse_args(add_args)
        if not args.use_checkpoint_args:
            check_args(args)
        args = parse_and_validate_args(add_args)
        check_args(args)
    except (ArgumentError, AssertionError, ValueError) as error:
        if os.environ.get("RANK", "0") == "0":
            # Some of Megatron's assertions have no message; their source line says what failed.
            reason = str(error) or traceback.extract_tb(error.__traceback__)[-1].line
            print(f"pretrain_helm.py: error: {reason}", file=sys.stderr)
        sys.exit(2)
    return args


def loss_of(loss_mask: Tensor, losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Sum of the masked losses of this rank's tokens, their number, and both for Megatron's log.

    Megatron divides the sum by the number, then averages over the ranks.
    """
    mask = loss_mask.flatten().float()
    loss = (losses.flatten().float() * mask).sum()
    count = mask.sum().to(torch.int)
    if get_args().check_for_nan_in_loss_and_grad:
        for name, rejected in (("NaN", torch.isnan), ("Inf", torch.isinf)):
            get_rerun_state_machine().validate_result(
                result=loss,
                rejection_func=rejected,
                message=f"found {name} in local forward loss calculation",
                tolerance=0.0,
                fatal=True,
            )
    report = torch.stack([loss.detach(), count.to(loss.dtype)])
    if get_args().context_parallel_size > 1 and not get_args().calculate_per_token_loss:
        # The ranks' numbers may differ: let their average be the mean over the whole sequences.
        group = parallel_state.get_context_parallel_group()
        total = count.clone()
        dist.all_reduce(total, group=group)
        loss = loss * (count * group.size() / total.clamp(min=1))
    return loss, count, {"lm loss": report}


def forward_step(
    data_iterator: Iterator, model: GPTModel
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, dict[str, Tensor]]]]:
    """One micro-batch through this pipeline stage: its output and the loss function of it."""
    timers = get_timers()
    timers("batch-generator", log_level=2).start()
    batch: dict[str, Any] = next_batch(data_iterator, get_attr_wrapped_model(model, "vp_stage"))
    timers("batch-generator").stop()
    output = model(
        batch["tokens"],
        batch["position_ids"],
        batch["attention_mask"],
        labels=batch["labels"],
        loss_mask=batch["loss_mask"],
        packed_seq_params=batch["packed_seq_params"],
    )
    return output, partial(loss_of, batch["loss_mask"])


def main() -> None:
    """Parse the command line and train."""
    # What Megatron's wheel needs mended on every device; without CUDA the platform has done it.
    platform.use_compiled_helpers()
    reshard.install()
    args = checked_args()
    if args.reset_attention_mask:
        args.create_attention_mask_in_dataloader = True
    config = config_from_args(args)
    monitor = Monitor(config)
    config.finalize_model_grads_func = monitor.finalize
    model_config = gpt_config_from_args(args, config, HelmModelConfig)
    model_config.pre_wrap_hooks.append(monitor.watch)
    pretrain(
        pretrain_cfg_container_from_args(args, model_config),
        train_valid_test_datasets,
        ModelType.encoder_or_decoder,
        forward_step,
    )
