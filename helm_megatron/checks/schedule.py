"""Iterations, rates and intervals that go together; Megatron says it late, or without words."""

from __future__ import annotations

import argparse
from typing import Any

from helm_megatron.checks.refusals import Rules, flag_of


def rules(args: argparse.Namespace) -> Rules:
    """What the flags say of time, batches and rates does not contradict itself."""
    yield from _unit_rules(args)
    yield from _warmup_rules(args)
    yield from _rate_rules(args)
    yield from _interval_rules(args)
    yield from _batch_rules(args)


def training_rules(args: argparse.Namespace) -> Rules:
    """What every training needs, and a plan or a verification does not."""
    missing = "is missing"
    yield (
        args.train_iters is None and args.train_samples is None,
        f"--train-iters {missing}: how long to train; or --train-samples",
    )
    yield args.lr is None, f"--lr {missing}: the learning rate"
    yield args.micro_batch_size is None, f"--micro-batch-size {missing}: sequences at once"
    yield (
        args.seq_length is None and args.encoder_seq_length is None,
        f"--seq-length {missing}: tokens of a sequence",
    )
    yield (
        args.max_position_embeddings is None,
        f"--max-position-embeddings {missing}: pass the value of --seq-length",
    )


def _set(args: argparse.Namespace, *names: str) -> list[str]:
    """Those of the attributes that are set, as flags with their values."""
    return [f"{flag_of(name)} {getattr(args, name)}" for name in names if getattr(args, name)]


def _unit_rules(args: argparse.Namespace) -> Rules:
    iterations = ("lr_decay_iters", "lr_warmup_iters", "lr_wsd_decay_iters")
    samples = ("lr_decay_samples", "lr_warmup_samples", "lr_wsd_decay_samples")
    yield (
        bool(args.train_iters and args.train_samples),
        f"--train-iters {args.train_iters} and --train-samples {args.train_samples}: pass one",
    )
    for unit, other, names in (
        ("train_iters", "samples", samples),
        ("train_samples", "iterations", iterations),
    ):
        given = _set(args, *names) if getattr(args, unit) else []
        yield bool(given), f"{', '.join(given)}: in {other}, but {flag_of(unit)} is set; drop one"
    both = _set(args, "lr_warmup_iters", "lr_warmup_samples")
    yield (
        args.lr_warmup_fraction is not None and bool(both),
        f"--lr-warmup-fraction {args.lr_warmup_fraction} and {', '.join(both)}: pass one",
    )


def _warmup_rules(args: argparse.Namespace) -> Rules:
    for unit in ("iters", "samples"):
        warmup = getattr(args, f"lr_warmup_{unit}")
        decay = getattr(args, f"lr_decay_{unit}") or getattr(args, f"train_{unit}")
        yield (
            bool(decay) and warmup >= decay,
            f"--lr-warmup-{unit} {warmup}: must be below the {decay} of --lr-decay-{unit}, or of "
            f"--train-{unit} without it",
        )
        wsd = getattr(args, f"lr_wsd_decay_{unit}")
        yield (
            args.lr_decay_style == "WSD" and bool(getattr(args, f"train_{unit}")) and wsd is None,
            f"--lr-decay-style WSD needs --lr-wsd-decay-{unit}",
        )
        yield (
            bool(decay) and wsd is not None and wsd > decay,
            f"--lr-wsd-decay-{unit} {wsd}: more than the {decay} of the whole schedule",
        )


def _rate_rules(args: argparse.Namespace) -> Rules:
    for low, high in (
        ("min_lr", "lr"),
        ("lr_warmup_init", "lr"),
        ("decoupled_min_lr", "decoupled_lr"),
        ("start_weight_decay", "end_weight_decay"),
    ):
        small, large = getattr(args, low), getattr(args, high)
        yield (
            small is not None and large is not None and small > large,
            f"{flag_of(low)} {small}: above {flag_of(high)} {large}",
        )
    yield (
        args.decoupled_min_lr is not None and args.decoupled_lr is None,
        f"--decoupled-min-lr {args.decoupled_min_lr}: needs --decoupled-lr",
    )
    ends = (args.start_weight_decay, args.end_weight_decay)
    style = f"--weight-decay-incr-style {args.weight_decay_incr_style}"
    if args.weight_decay_incr_style == "constant":
        # Megatron fills both in with --weight-decay.
        yield (
            ends not in ((None, None), (args.weight_decay, args.weight_decay)),
            f"{style}: takes --weight-decay; drop --start-weight-decay and --end-weight-decay",
        )
    else:
        yield None in ends, f"{style}: needs --start-weight-decay and --end-weight-decay"
    yield (
        args.override_opt_param_scheduler and args.use_checkpoint_opt_param_scheduler,
        "--override-opt_param-scheduler and --use-checkpoint-opt_param-scheduler: pass one",
    )


def _interval_rules(args: argparse.Namespace) -> Rules:
    interval, log = args.save_interval, args.log_interval
    yield (
        args.save is not None and interval is None,
        "--save needs --save-interval: iterations between checkpoints",
    )
    keep, memory = args.save_retain_interval, args.log_memory_interval
    yield (
        bool(keep and interval) and keep % interval != 0,
        f"--save-retain-interval {keep}: must be a multiple of --save-interval {interval}",
    )
    yield (
        bool(memory) and memory % log != 0,
        f"--log-memory-interval {memory}: must be a multiple of --log-interval {log}",
    )
    yield (
        args.save_params_interval is not None and args.overlap_param_gather,
        f"--save-params-interval {args.save_params_interval}: not with --overlap-param-gather",
    )
    yield (
        args.profile and args.profile_step_start > args.profile_step_end,
        f"--profile-step-start {args.profile_step_start}: after --profile-step-end "
        f"{args.profile_step_end}",
    )


def _batch_rules(args: argparse.Namespace) -> Rules:
    yield (
        bool(args.rampup_batch_size),
        "--rampup-batch-size: Megatron has --step-batch-size-schedule instead",
    )
    for micro, whole in (
        ("micro_batch_size", "global_batch_size"),
        ("eval_micro_batch_size", "eval_global_batch_size"),
    ):
        each, total = getattr(args, micro), getattr(args, whole)
        ranks = _data_parallel_size(args)
        yield (
            bool(each and total)
            and total % (each * ranks) != 0
            and not args.decrease_batch_size_if_needed,
            f"{flag_of(whole)} {total}: must be a multiple of {flag_of(micro)} {each} times the "
            f"{ranks} data-parallel ranks",
        )


def _data_parallel_size(args: Any) -> int:
    """Replicas of the model, by the sizes that are known before Megatron's validation."""
    tp, pp = args.tensor_model_parallel_size, args.pipeline_model_parallel_size
    return max(args.world_size // (tp * pp * args.context_parallel_size), 1)
