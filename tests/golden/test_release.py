"""The importer of released checkpoints: both directions of its table, its config and its errors."""

from typing import Any

import pytest
import torch
from golden import assert_close, load
from released import model_cases, under
from torch import Tensor

from helm_megatron.conversion.release.config import config_from_release
from helm_megatron.conversion.release.names import (
    from_release,
    is_ignored,
    load_release,
    to_release,
)
from helm_megatron.conversion.table import MappingError
from helm_megatron.model import build_model
from helm_megatron.transformer_config import ambient_residual_scale


def released(case: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, info = load(case)
    return under("param/", tensors), info


@pytest.mark.parametrize("case", model_cases())
def test_round_trip(case: str) -> None:
    state, info = released(case)
    config = config_from_release(info["config"], state, torch.float64)
    back = to_release(from_release(state, config), config)
    assert all(is_ignored(name) for name in state.keys() - back.keys())
    assert back.keys() <= state.keys()
    for name, tensor in back.items():
        assert_close(tensor, state[name], rtol=1e-14, what=name)


@pytest.mark.parametrize("case", model_cases())
def test_fixed_residual_scales(case: str) -> None:
    state, info = released(case)
    scale = ambient_residual_scale(config_from_release(info["config"], state))
    for name, constants in info["constants"].items():
        if constants["fixed_scale"] and name.endswith((".res1", ".res2", "n_res", "attn_res")):
            assert scale == pytest.approx(constants["fixed_scale"], rel=1e-14), name


@pytest.mark.parametrize("case", model_cases())
def test_unknown_parameter(case: str) -> None:
    state, info = released(case)
    config = config_from_release(info["config"], state)
    with pytest.raises(MappingError, match=r"unknown parameter layers\.0\.attn\.wx\.weight"):
        from_release({**state, "layers.0.attn.wx.weight": torch.ones(1)}, config)


@pytest.mark.parametrize("case", model_cases())
def test_missing_part(case: str) -> None:
    state, info = released(case)
    config = config_from_release(info["config"], state)
    up = next(name for name in state if name.endswith(".w3.linear.weight"))
    del state[up]
    with pytest.raises(MappingError, match=f"{up} is missing"):
        from_release(state, config)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("case", model_cases())
def test_missing_parameter(case: str) -> None:
    state, info = released(case)
    config = config_from_release(info["config"], state)
    model = build_model(config, info["config"]["vocab_size"], 8, position_embedding_type="rope")
    del state["final_proj.linear.bias"]
    with pytest.raises(MappingError, match=r"lacks what is decoder\.final_layernorm\.proj\.bias"):
        load_release(model, state)


@pytest.mark.parametrize("case", model_cases())
def test_curvature_without_hyperboloid(case: str) -> None:
    state, info = released(case)
    config = config_from_release(info["config"], state)
    for name in [n for n in state if n.endswith("expert_manifold.k")]:
        bad = {**state, name: torch.tensor(-0.25)}
        with pytest.raises(MappingError, match=f"{name}: curvature -0.25 is not positive"):
            from_release(bad, config)


DENSE = {f"manifold_{name}.k": torch.tensor(1.0) for name in ("in", "hidden", "out")}
DENSE["resblocks.0.ln_1.weight"] = torch.ones(1)


def test_bad_arch() -> None:
    with pytest.raises(ValueError, match="arch 'W36' is not of the form"):
        config_from_release({"arch": "W36"}, DENSE)


def test_lacking_arguments() -> None:
    with pytest.raises(ValueError, match="the released config lacks arch"):
        config_from_release({"dim": 36}, DENSE)


def test_other_state_dict() -> None:
    state = {"resblocks.0.ln_1.weight": torch.ones(1)}
    with pytest.raises(ValueError, match=r"manifold_hidden\.k is missing"):
        config_from_release({"arch": "L1_W36_A4"}, state)
