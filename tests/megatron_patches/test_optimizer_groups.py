"""Parameter groups of a checkpoint with another number of optimizers."""

import pytest

from helm_megatron.megatron_patches.optimizer_groups import rearranged

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
