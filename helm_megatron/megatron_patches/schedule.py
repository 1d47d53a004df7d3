"""A schedule is compared with its checkpoint's by what it does.

Upstream: Megatron 0.19 compares every number of the two, also those that have no effect: over how
many samples a constant rate, or a constant weight decay, would change. So a run could not go on for
more iterations than it was begun for.
Here: those are this run's.
Goes: when upstream compares what has an effect.
"""

import functools
from typing import Any

UPSTREAM = {
    "megatron.core.optimizer_param_scheduler.OptimizerParamScheduler.load_state_dict": (
        "f25f3bf57255"
    )
}


def apply() -> None:
    """Wrap the method."""
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    load = OptimizerParamScheduler.load_state_dict

    @functools.wraps(load)
    def load_state_dict(self: Any, state_dict: dict[str, Any]) -> None:
        load(self, with_effect(state_dict, self.state_dict()))

    OptimizerParamScheduler.load_state_dict = load_state_dict


def with_effect(saved: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The state of a checkpoint's schedule, with this run's values where they have no effect."""
    idle = []
    if saved.get("lr_decay_style") == own["lr_decay_style"] == "constant":
        idle += ["lr_decay_steps", "min_lr"]
    if saved.get("wd_incr_style") == own["wd_incr_style"] == "constant":
        idle.append("wd_incr_steps")
    return saved | {name: own[name] for name in idle}
