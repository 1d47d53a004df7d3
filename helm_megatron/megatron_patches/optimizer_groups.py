"""Optimizer checkpoints load with experts in an optimizer of their own, and without.

Upstream: in Megatron 0.19 the experts have an optimizer of their own with expert parallelism. A
checkpoint saved without it has one optimizer's parameter groups where a run with it expects two,
and the reverse; Megatron refuses, although it can reshard every tensor.
Here: the groups are rearranged before they are loaded.
Goes: when `ChainedOptimizer` loads the state of another number of optimizers.
"""

import functools
from typing import Any

StateDict = dict[Any, Any]
Groups = list[dict[str, Any]]

UPSTREAM = {"megatron.core.optimizer.optimizer.ChainedOptimizer.load_state_dict": "fffa465966d1"}


def apply() -> None:
    """Replace the method."""
    from megatron.core.optimizer.optimizer import ChainedOptimizer

    load = ChainedOptimizer.load_state_dict

    @functools.wraps(load)
    def load_state_dict(self: Any, state_dict: Any) -> None:
        current = [optimizer.param_groups for optimizer in self.chained_optimizers]
        load(self, rearranged(state_dict, current) if isinstance(state_dict, dict) else state_dict)

    ChainedOptimizer.load_state_dict = load_state_dict


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
    matched = [{**_match(group, groups), "is_expert_parallel": _expert(group)} for group in current]
    for group, loaded in zip(matched, parts[1].get("param_groups", []), strict=False):
        group.update(loaded)  # the indices of this run's parameters, where they are kept here
    holder = {**parts[0], **parts[1], "param_groups": matched}
    return {**saved, **own, "optimizer": holder} if wrapped else holder


def _expert(group: dict[str, Any]) -> bool:
    return bool(group.get("is_expert_parallel"))


def _match(group: dict[str, Any], saved: Groups) -> dict[str, Any]:
    """The saved group with the identity of `group`; of two, the one for experts if that is."""
    from megatron.core.optimizer.optimizer import param_group_identifier_keys

    keys = [key for key in param_group_identifier_keys if key != "is_expert_parallel"]

    def identity(group: dict[str, Any]) -> list[Any]:
        # NeMo writes wd_mult and lr_mult as pre_wd_mult and pre_lr_mult.
        return [group.get(key, group.get(f"pre_{key}")) for key in keys]

    matches = [other for other in saved if identity(other) == identity(group)]
    if not matches:
        wanted = dict(zip(keys, identity(group), strict=True))
        raise ValueError(f"the checkpoint's optimizer has no parameter group with {wanted}")
    return next((other for other in matches if _expert(other) == _expert(group)), matches[0])
