"""Parameter groups of a checkpoint with another number of optimizers."""

import pytest

from helm_megatron.megatron_patches.optimizer_groups import planned, rearranged
from helm_megatron.megatron_patches.schedule import with_effect

DENSE = {"wd_mult": 1.0, "lr_mult": 1.0, "is_expert_parallel": False}
NO_DECAY = {**DENSE, "wd_mult": 0.0}
EXPERTS = {**DENSE, "is_expert_parallel": True}


def saved(*groups):
    return {"optimizer": {"param_groups": [{**group, "step": 7} for group in groups]}}


def test_one_to_two():
    loaded = {**saved(NO_DECAY, DENSE), 0: {"param_state": "a"}, 1: {"param_state": "b"}}
    out = rearranged(loaded, [[DENSE, NO_DECAY], [EXPERTS]])
    assert out == {
        0: {**saved(DENSE, NO_DECAY), "param_state": "a"},
        1: {**saved(EXPERTS), "param_state": "b"},
    }


def test_two_to_one():
    loaded = {0: saved(DENSE), 1: saved(EXPERTS), "param_state": "a"}
    assert rearranged(loaded, [[DENSE]]) == {**saved(DENSE), "param_state": "a"}


def test_experts_keep_their_own_settings():
    groups = {0: saved(DENSE), 1: saved({**EXPERTS, "lr": 0.5})}
    (group,) = rearranged(groups, [[EXPERTS]])["optimizer"]["param_groups"]
    assert group["lr"] == 0.5


def test_keeps_this_runs_parameters():
    """Megatron's optimizer of fp32 models wraps nothing and keeps the parameters' indices."""
    own = [{"state": {}, "param_groups": [{"params": [i]}]} for i in range(2)]
    loaded = {"param_groups": [{**DENSE, "step": 7}], **dict(enumerate(own))}
    out = rearranged(loaded, [[DENSE], [EXPERTS]])
    assert out[0]["param_groups"] == [{**DENSE, "step": 7, "params": [0]}]
    assert out[1]["param_groups"] == [{**EXPERTS, "step": 7, "params": [1]}]


@pytest.mark.parametrize("loaded", [saved(DENSE), {0: saved(DENSE), 1: saved(EXPERTS)}])
def test_leaves_what_agrees(loaded):
    current = [[DENSE]] if "optimizer" in loaded else [[DENSE], [EXPERTS]]
    assert rearranged(loaded, current) is loaded


def test_says_which_group_is_missing():
    with pytest.raises(ValueError, match="no parameter group with .*'wd_mult': 0.0"):
        rearranged({0: saved(DENSE), 1: saved(EXPERTS)}, [[NO_DECAY]])


def at(rate, **entries):
    return {**DENSE, "max_lr": rate, "min_lr": 0.0, "betas": (0.9, 0.95), **entries}


def test_groups_are_found_at_other_rates():
    """In whatever order; a group with a rate of its own by its ratio to the common one."""
    names = {"plain": {"default_config": True}, "own": {"wd_mult": 0.0}, "none": {"wd_mult": 0.0}}
    ratios = {"plain": 1, "own": 3, "none": 1}
    now = [at(1e-3 * ratios[name], **names[name], name=name) for name in names]
    then = [at(1e-2 * ratios[n], **names[n], step=n, params=[i]) for i, n in enumerate(names)]
    loaded = {"param_groups": [then[2], then[0], then[1]]}
    (plans,) = planned(loaded, [now])
    found = loaded["param_groups"]
    assert [group["step"] for group in found] == list(names)
    assert [group["max_lr"] for group in found] == [group["max_lr"] for group in now]
    assert [group["params"] for group in found] == [[2], [0], [1]]  # this run's, in its order
    assert [plan["max_lr"] for plan in plans] == [group["max_lr"] for group in then]


def test_an_optimizer_of_nothing_is_left_alone():
    state = {0: saved(at(1.0)), 1: {}}
    assert planned(state, [[at(2.0)], []]) == [
        [{"max_lr": 1.0, "min_lr": 0.0, "betas": (0.9, 0.95)}],
        [],
    ]
    assert state[1] == {} and state[0]["optimizer"]["param_groups"][0]["max_lr"] == 2.0


def test_what_has_no_effect_in_a_schedule_is_this_runs():
    own = {"lr_decay_style": "constant", "lr_decay_steps": 6, "min_lr": 1, "max_lr": 2}
    own |= {"wd_incr_style": "constant", "wd_incr_steps": 6}
    saved = {**own, "lr_decay_steps": 4, "wd_incr_steps": 4, "min_lr": 0, "max_lr": 3}
    assert with_effect(saved, own) == {**own, "max_lr": 3}
    falling = {"lr_decay_style": "cosine", "wd_incr_style": "linear"}
    assert with_effect(saved | falling, own | falling) == saved | falling
