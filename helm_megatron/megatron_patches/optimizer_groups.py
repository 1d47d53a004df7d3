"""Optimizer checkpoints load with experts in an optimizer of their own, without, at other rates.

Upstream: in Megatron 0.19 the experts have an optimizer of their own with expert parallelism. A
checkpoint saved without it has one optimizer's parameter groups where a run with it expects two,
and the reverse; Megatron refuses, although it can reshard every tensor. It finds the groups by
their learning rates, too, so that none is found at another rate; and what it finds brings the
checkpoint's rates with it, whatever the schedule then says.
Here: the groups are rearranged before they are loaded, and found by the ratio of their rate to the
common one. Rates, betas and eps are this run's; with `--use-checkpoint-opt_param-scheduler` they
are the checkpoint's.
Goes: when `ChainedOptimizer` loads the state of another number of optimizers, and of other rates.
"""

import functools
from typing import Any

from megatron.training import get_args

StateDict = dict[Any, Any]
Groups = list[dict[str, Any]]

UPSTREAM = {"megatron.core.optimizer.optimizer.ChainedOptimizer.load_state_dict": "fffa465966d1"}


# What belongs to the plan of a run, not to a group of parameters.
RATES = ("max_lr", "min_lr")
PLAN = (*RATES, "betas", "eps")


def apply() -> None:
    """Replace the method."""
    from megatron.core.optimizer.optimizer import ChainedOptimizer

    load = ChainedOptimizer.load_state_dict

    @functools.wraps(load)
    def load_state_dict(self: Any, state_dict: Any) -> None:
        if not isinstance(state_dict, dict):
            load(self, state_dict)
            return
        current = [optimizer.param_groups for optimizer in self.chained_optimizers]
        state_dict = rearranged(state_dict, current)
        plans = planned(state_dict, current)
        load(self, state_dict)
        if get_args().use_checkpoint_opt_param_scheduler:
            for optimizer, saved in zip(self.chained_optimizers, plans, strict=True):
                for group, plan in zip(optimizer.param_groups, saved, strict=True):
                    group.update(plan)

    ChainedOptimizer.load_state_dict = load_state_dict


def planned(state_dict: StateDict, current: list[Groups]) -> list[Groups]:
    """Put the groups of a rearranged state dict in this run's order, with its rates; in place.

    Returns:
        What the checkpoint has in their place, for each group of each optimizer.
    """
    plans: list[Groups] = []
    parts = [state_dict] if len(current) == 1 else [state_dict[i] for i in sorted(state_dict)]
    for part, groups in zip(parts, current, strict=True):
        holder = _holder(part)
        found = holder.get("param_groups")
        if not found:  # an optimizer of nothing
            plans.append([{} for _ in groups])
            continue
        matches = [_match(group, groups, found) for group in groups]
        plans.append([_plan(match) for match in matches])
        holder["param_groups"] = own = [
            {**match, **_plan(group), "is_expert_parallel": _expert(group)}
            for match, group in zip(matches, groups, strict=True)
        ]
        for group, place in zip(own, found, strict=False):
            if "params" in place:  # of this run already
                group["params"] = place["params"]
    return plans


def _plan(group: dict[str, Any]) -> dict[str, Any]:
    return {name: group[name] for name in PLAN if name in group}


def rearranged(state_dict: StateDict, current: list[Groups]) -> StateDict:
    """A loaded state dict in the form that `ChainedOptimizer.load_state_dict` expects.

    Args:
        state_dict: one optimizer's, or {0: one optimizer's, 1: another's}. What this run's own
            optimizers loaded and what the checkpoint's optimizers had in common lie side by side
            in it if their number differs.
        current: the parameter groups of each optimizer of this run.
    Returns:
        `state_dict` itself if the numbers agree.
    Raises:
        ValueError: this run has a parameter group that the checkpoint lacks.
    """
    numbered = {key: value for key, value in state_dict.items() if isinstance(key, int)}
    single = {key: value for key, value in state_dict.items() if not isinstance(key, int)}
    if len(current) == 1 and numbered:
        saved = [group for i in sorted(numbered) for group in _holder(numbered[i])["param_groups"]]
        return _combined(numbered[min(numbered)], single, current[0], saved)
    if len(current) > 1 and single:
        saved = _holder(single)["param_groups"]
        own = [numbered.get(i, {}) for i in range(len(current))]
        return {i: _combined(single, own[i], current[i], saved) for i in range(len(current))}
    return state_dict


def _holder(state_dict: StateDict) -> StateDict:
    """Where a Megatron optimizer keeps its param_groups: the fp32 one does not wrap torch's."""
    return state_dict.get("optimizer", state_dict)


def _combined(saved: StateDict, own: StateDict, current: Groups, groups: Groups) -> StateDict:
    """`own` with what only `saved` has, and for every current group its match of `groups`."""
    wrapped = "optimizer" in saved or "optimizer" in own
    parts = [part.get("optimizer", {}) if wrapped else part for part in (saved, own)]
    matched = [
        {**_match(group, current, groups), "is_expert_parallel": _expert(group)}
        for group in current
    ]
    for group, loaded in zip(matched, parts[1].get("param_groups", []), strict=False):
        group.update(loaded)  # the indices of this run's parameters, where they are kept here
    holder = {**parts[0], **parts[1], "param_groups": matched}
    return {**saved, **own, "optimizer": holder} if wrapped else holder


def _expert(group: dict[str, Any]) -> bool:
    return bool(group.get("is_expert_parallel"))


def _match(group: dict[str, Any], current: Groups, saved: Groups) -> dict[str, Any]:
    """The saved group with the identity of `group`, one of `current`.

    Of several the one for experts if that is, and then that whose rate is to the common one of its
    list most nearly as the rate of `group` is to the common one here.
    """
    from megatron.core.optimizer.optimizer import param_group_identifier_keys

    keys = [k for k in param_group_identifier_keys if k not in (*RATES, "is_expert_parallel")]

    def identity(group: dict[str, Any]) -> list[Any]:
        # NeMo writes wd_mult and lr_mult as pre_wd_mult and pre_lr_mult.
        return [group.get(key, group.get(f"pre_{key}")) for key in keys]

    def distance(other: dict[str, Any]) -> tuple[bool, float]:
        ratios = _ratio(other, saved), _ratio(group, current)
        return _expert(other) != _expert(group), abs(ratios[0] - ratios[1])

    matches = [other for other in saved if identity(other) == identity(group)]
    if not matches:
        wanted = dict(zip(keys, identity(group), strict=True))
        raise ValueError(f"the checkpoint's optimizer has no parameter group with {wanted}")
    return min(matches, key=distance)


def _ratio(group: dict[str, Any], groups: Groups) -> float:
    """A group's largest rate, to that of the groups that have no rate of their own."""
    common = [g["max_lr"] for g in groups if g.get("default_config") and g.get("max_lr")]
    return (group.get("max_lr") or 0.0) / (common[0] if common else 1.0)
