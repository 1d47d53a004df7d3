"""What `pretrain_helm.py` hands to `megatron.training.pretrain`: flags, model, data and loss."""

from __future__ import annotations

import argparse
import functools
import math
import os
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.enums import ModelType
from megatron.core.models.gpt import GPTModel
from megatron.core.rerun_state_machine import RerunMode, get_rerun_state_machine
from megatron.core.utils import get_attr_wrapped_model
from megatron.training import get_args, get_timers, get_tokenizer, pretrain
from megatron.training.argument_utils import pretrain_cfg_container_from_args
from megatron.training.arguments import parse_and_validate_args, parse_args
from torch import Tensor

from helm_megatron import lost_ranks, megatron_patches
from helm_megatron.analysis.monitor import Monitor
from helm_megatron.arguments import add_helm_args, config_from_args
from helm_megatron.builder import model_config_from_args
from helm_megatron.checkpoint import compatibility, failures, files
from helm_megatron.checkpoint.lock import lock
from helm_megatron.checkpoint.plan import check_plan
from helm_megatron.checkpoint.start import find_start
from helm_megatron.checks import (
    check_args,
    check_paths,
    check_save,
    check_training,
    check_values,
    megatrons_refusals,
    refuse_in_one_line,
)
from helm_megatron.checks.fast_paths import without_effect
from helm_megatron.data.training import validation
from helm_megatron.data.training.batch import next_batch, train_valid_test_datasets
from helm_megatron.data.training.fit import check_fit
from helm_megatron.data.training.parts import check_parts
from helm_megatron.data.training.token_bytes import token_bytes
from helm_megatron.errors import HelmError
from helm_megatron.megatron_patches import cpu
from helm_megatron.megatron_patches.fixed_validation import BITS_PER_BYTE


def add_args(
    parser: argparse.ArgumentParser,
    from_checkpoint: dict[str, Any] | None = None,
    settled: dict[str, Any] | None = None,
) -> argparse.ArgumentParser:
    """HELM's flags, and defaults of Megatron's that suit this platform and attention.

    `from_checkpoint` holds further defaults, by name, and `settled` what takes the place of what
    is given.
    """
    add_helm_args(parser)
    parser.add_argument_group("helm data").add_argument(
        "--check-data",
        action="store_true",
        help="Look at every token of the data, and at the hashes of its files, before training; "
        "without, at the whole index and the sizes.",
    )
    # Attention is causal without a mask; one is built only to keep documents apart.
    parser.set_defaults(create_attention_mask_in_dataloader=False, transformer_impl="local")
    # Megatron has no default and needs a number, even with --eval-iters 0.
    parser.set_defaults(eval_interval=1000)
    parser.set_defaults(**cpu.defaults())
    parser.set_defaults(**from_checkpoint or {})
    refuse_in_one_line(parser)
    if settled:
        parse = parser.parse_args

        def parse_and_settle() -> argparse.Namespace:
            # Megatron's parse_args calls it without arguments, and means the command line.
            return argparse.Namespace(**vars(parse()) | settled)

        parser.parse_args = parse_and_settle  # type: ignore[assignment]
    return parser


def checked_args() -> argparse.Namespace:
    """The command line, or exit code 2 and one line that says what is wrong with it.

    The checkpoint to load is looked at too: it must be whole (else exit code 1) and of this model.
    So is the data: whole, and enough.
    """
    try:
        with megatrons_refusals():
            args = parse_args(add_args)
            check_values(args)
            start = find_start(args)
            state = loaded_state(start.folder)
            saved = state.get("args")
            provider = partial(add_args, settled=start.settled)
            if args.use_checkpoint_args:
                defaults = compatibility.defaults_from(saved) if saved else {}
                provider = partial(provider, from_checkpoint=defaults)
            else:
                check_args(args)
                check_training(args)
            check_paths(args)
            args = parse_and_validate_args(provider)
            check_args(args)
            check_training(args)
            if start.folder is not None and saved is not None:
                compatibility.check_compatible(args, saved, start.folder)
                for line in compatibility.changes(args, saved):
                    note(f"another function: {line}")
                check_plan(args, state, start.folder)
            check_fit(args, get_tokenizer())
            check_parts(args)
            validation.take_over(args)
            check_save(args)  # makes the folder: a start that is refused leaves none
            if args.save and os.environ.get("RANK", "0") == "0":
                lock(Path(args.save))
    except files.CheckpointError as error:
        failed(str(error))
    except SystemExit as error:
        if reason := failures.exit_in_loading(error):
            failed(reason)
        raise
    except HelmError as error:
        failed(str(error), exit_code=2)
    if start.says and os.environ.get("RANK", "0") == "0":
        print(f"pretrain_helm.py: {start.says}", flush=True)
    return args


def loaded_state(folder: Path | None) -> dict[str, Any]:
    """The common state of the checkpoint that will be loaded, which is whole.

    Raises:
        CheckpointError: it is not.
    """
    if folder is None:
        return {}
    rank, ranks = (int(os.environ.get(n, d)) for n, d in (("RANK", 0), ("WORLD_SIZE", 1)))
    files.check_whole(folder, rank, ranks)
    return compatibility.common_state(folder)


def training_config(args: argparse.Namespace) -> Any:
    """Everything `megatron.training.pretrain` builds from, with our own work in its hooks."""
    config = config_from_args(args)
    monitor = Monitor(config)
    config.finalize_model_grads_func = monitor.finalize
    model_config = model_config_from_args(args, config, get_tokenizer().vocab_size)
    model_config.pre_wrap_hooks += [monitor.watch, lost_ranks.introduce]
    return pretrain_cfg_container_from_args(args, model_config)


def be_one_process_without_launcher() -> None:
    """`python pretrain_helm.py` without torchrun is a run of one process."""
    if "RANK" in os.environ:
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}
    os.environ.update({name: str(value) for name, value in alone.items()})
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(port))


def failed(reason: str, exit_code: int = 1, every_rank: bool = False) -> NoReturn:
    """End this rank and say why in one line; the first rank says what all of them know."""
    rank = os.environ.get("RANK", "0")
    if every_rank or rank == "0":
        where = f" (rank {rank})" if every_rank else ""
        print(f"pretrain_helm.py: error{where}: {reason}", file=sys.stderr, flush=True)
    sys.exit(exit_code)


def note(line: str) -> None:
    """Say one line, which every rank knows, once."""
    if os.environ.get("RANK", "0") == "0":
        print(f"pretrain_helm.py: {line}", file=sys.stderr, flush=True)


class InvalidLossError(HelmError):
    """The loss is not a number; the message says where and what to do."""


def check_loss(loss: Tensor) -> None:
    """Megatron's check of the loss for NaN and infinity, with reruns to find what is at fault.

    Raises:
        InvalidLossError: where there are no reruns: without --rerun-mode, and in the first
            iteration after a start, when Megatron does not look at the loss, but would update the
            weights and later save them.
    """
    machine = get_rerun_state_machine()
    reruns = machine.get_mode() != RerunMode.DISABLED and machine.first_iteration_complete
    for name, is_rejected in (("NaN", torch.isnan), ("Inf", torch.isinf)):
        if reruns:
            machine.validate_result(
                result=loss,
                rejection_func=is_rejected,
                message=f"found {name} in local forward loss calculation",
                tolerance=0.0,
                fatal=True,
            )
        elif is_rejected(loss):
            raise InvalidLossError(
                f"the loss is {name} in iteration {get_args().curr_iteration + 1}; nothing was "
                "saved since the last checkpoint: look at the data, lower --lr, or load an older "
                "one with --ckpt-step"
            )


@functools.cache
def bytes_by_token() -> Tensor | None:
    """Bytes of each token of this run's tokenizer, on this rank's device; see `token_bytes`."""
    sizes = token_bytes(get_tokenizer())
    return None if sizes is None else sizes.cuda()


def loss_of(
    loss_mask: Tensor, losses: Tensor, evaluated: Tensor | None = None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Sum of the masked losses of this rank's tokens, their number, and both for Megatron's log.

    Megatron divides the sum by the number, then averages over the ranks. `evaluated` are the labels
    `[b, s]` in an evaluation, which reports bits and bytes besides.
    """
    mask = loss_mask.flatten().float()
    loss = (losses.flatten().float() * mask).sum()
    count = mask.sum().to(torch.int)
    if get_args().check_for_nan_in_loss_and_grad:
        check_loss(loss)
    report = torch.stack([loss.detach(), count.to(loss.dtype)])
    if get_args().context_parallel_size > 1 and not get_args().calculate_per_token_loss:
        # The ranks' numbers may differ: let their average be the mean over the whole sequences.
        group = parallel_state.get_context_parallel_group()
        total = count.clone()
        dist.all_reduce(total, group=group)
        loss = loss * (count * group.size() / total.clamp(min=1))
    reports = {"lm loss": report}
    if evaluated is not None and (sizes := bytes_by_token()) is not None:
        text = (sizes[evaluated.flatten()] * mask).sum()
        reports[BITS_PER_BYTE] = torch.stack([report[0] / math.log(2), text])
    return loss, count, reports


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
    evaluated = None if model.training else batch["labels"]
    return output, partial(loss_of, batch["loss_mask"], evaluated=evaluated)


def main() -> None:
    """Parse the command line and train."""
    megatron_patches.apply()
    be_one_process_without_launcher()
    args = checked_args()
    if args.reset_attention_mask:
        args.create_attention_mask_in_dataloader = True
    try:
        with megatrons_refusals():
            container = training_config(args)
    except HelmError as error:
        failed(str(error), exit_code=2)
    for line in without_effect(args):
        note(f"without effect: {line}")
    try:
        pretrain(container, train_valid_test_datasets, ModelType.encoder_or_decoder, forward_step)
    except HelmError as error:
        failed(str(error), every_rank=True)
    except failures.ERRORS as error:
        reason = lost_ranks.explanation(error, args) or failures.explanation(error, args)
        if reason is None:
            raise
        failed(reason, every_rank=True)
    except SystemExit as error:
        if reason := failures.exit_in_loading(error):
            failed(reason, every_rank=True)
        raise
    except KeyboardInterrupt:
        failed("interrupted; --exit-signal-handler saves a checkpoint first", exit_code=130)
