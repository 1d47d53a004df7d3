"""Whether a run goes on by the plan that its checkpoint was made by: rates, decay, batch.

Megatron compares what its scheduler keeps when the model is built already, in samples, and the
optimizer's own settings not at all: those of the checkpoint stay.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from megatron.training.training import get_optimizer_param_scheduler

from helm_megatron.checkpoint.compatibility import loads_optimizer, with_defaults
from helm_megatron.checks import ArgumentError, flag_of
from helm_megatron.megatron_patches.schedule import with_effect

# Numbers of the scheduler, and the flags that set them; the second are counted in samples there.
_VALUES = {
    "max_lr": "--lr",
    "min_lr": "--min-lr",
    "lr_decay_style": "--lr-decay-style",
    "start_wd": "--weight-decay",
    "end_wd": "--weight-decay",
    "wd_incr_style": "--weight-decay-incr-style",
}
_STEPS = {
    "lr_warmup_steps": "--lr-warmup",
    "lr_decay_steps": "--lr-decay",
    "wd_incr_steps": "--train",
}
# Settings that the optimizer keeps in its groups of parameters.
_IN_GROUPS = ("adam_beta1", "adam_beta2", "adam_eps", "decoupled_lr", "decoupled_min_lr")
_FACTORS = ("embedding_lr_mult", "curvature_lr_mult")
# What makes a group of its own, and of which value that depends.
_GROUPS: dict[str, Callable[[Any], Any]] = {
    "decoupled_lr": lambda rate: rate is None,
    "curvature_lr_mult": lambda factor: factor == 1,
    "weight_decay_groups": str,
}


def check_plan(args: argparse.Namespace, state: dict[str, Any], folder: Path) -> None:
    """Refuse another plan than the checkpoint's, unless the command line says which one counts.

    Args:
        args: Megatron's, validated and global.
        state: the common state of the checkpoint.
        folder: where it is.

    Raises:
        ArgumentError: naming the flags, with both values, and the ways out.
    """
    saved, schedule = with_defaults(state["args"]), state.get("opt_param_scheduler")
    if schedule is None or not loads_optimizer(args, saved, folder):
        return
    _check_groups(args, saved, folder)
    if args.override_opt_param_scheduler or args.use_checkpoint_opt_param_scheduler:
        return
    changes = list(dict.fromkeys(_changes(args, saved, schedule)))
    if changes:
        raise ArgumentError(
            f"{', '.join(changes)}: not the plan of the checkpoint {folder}; pass the same, or"
            " --override-opt-param-scheduler to go on by the new plan"
            " (--use-checkpoint-opt-param-scheduler: by the old)"
        )


def _check_groups(args: argparse.Namespace, saved: argparse.Namespace, folder: Path) -> None:
    """Refuse what divides the parameters into other groups than the checkpoint's optimizer has."""
    grouped = {"decoupled_lr": True, "weight_decay_groups": args.geometry == "lorentz"}
    grouped["curvature_lr_mult"] = args.geometry == "lorentz" and args.num_experts is not None
    for name, kind in _GROUPS.items():
        theirs, ours = getattr(saved, name), getattr(args, name)
        if kind(theirs) != kind(ours) and grouped[name]:
            raise ArgumentError(
                f"{flag_of(name)} {ours}: the checkpoint {folder} has {theirs}, and so other groups"
                " in its optimizer; pass the same, or --no-load-optim"
            )


def _changes(
    args: argparse.Namespace, saved: argparse.Namespace, schedule: dict[str, Any]
) -> Iterator[str]:
    own = _schedule(args)
    schedule = with_effect(schedule, own)
    for name, flag in _VALUES.items():
        if schedule.get(name, own[name]) != own[name]:
            yield f"{flag} {own[name]} (was {schedule[name]})"
    batches = [1, 1] if args.train_samples else [a.global_batch_size for a in (args, saved)]
    if batches[0] != batches[1]:
        yield f"--global-batch-size {batches[0]} (was {batches[1]})"
    unit = "samples" if args.train_samples else "iters"
    for name, flag in _STEPS.items():
        if schedule.get(name, own[name]) == own[name]:
            continue
        ours, theirs = (
            f"{s[name] / b:.12g}" for s, b in zip((own, schedule), batches, strict=True)
        )
        if ours != theirs:
            cause = way_out = ""
            if name == "lr_decay_steps" and own[name] == own["wd_incr_steps"]:
                cause = f"--train-{unit} {ours} and so "
                way_out = f"; {flag}-{unit} {theirs} keeps it" * (batches[0] == batches[1])
            yield f"{cause}{flag}-{unit} {ours} (was {theirs}{way_out})"
    factors = _FACTORS if args.geometry == "lorentz" else ()
    for name in (*_IN_GROUPS, *factors):
        ours, theirs = getattr(args, name), getattr(saved, name)
        if ours != theirs:
            yield f"{flag_of(name)} {ours} (was {theirs})"


def _schedule(args: argparse.Namespace) -> dict[str, Any]:
    """What the scheduler of this run will keep. Megatron fills arguments in on the way, which it
    must find as they were when it does it."""
    before = dict(vars(args))
    try:
        nothing: Any = SimpleNamespace(param_groups=[])
        return get_optimizer_param_scheduler(nothing).state_dict()
    finally:
        vars(args).clear()
        vars(args).update(before)
