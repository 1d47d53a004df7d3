"""The Lorentz leaves of a Megatron layer against the released modules."""

from typing import Any

import pytest
import torch
from golden import cases, load_case
from leaves import Leaf, ModuleCase, leaf_of_layer
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from released import DEVICE

from helm_megatron.geometry.reference import lift
from helm_megatron.layers.embedding import to_hidden_curvature
from helm_megatron.layers.residual import LorentzResidual

pytestmark = pytest.mark.usefixtures("one_process")


def load(module: str, case: str, dtype: torch.dtype) -> tuple[ModuleCase, dict[str, Any]]:
    tensors, info = load_case(module, case)
    return ModuleCase(tensors, dtype), info


# Which linear of a layer it is, its prefix in the release, and the widths that make it n -> m.
LINEARS = {
    "column": ("self_attention.linear_q_proj", "layers.0.attn.wq."),
    "row": ("mlp.linear_fc2", "layers.0.ffn.w2."),
    "replicated": ("self_attention.linear_kv_down_proj", "layers.0.attn.wkv_a."),
}


@pytest.mark.parametrize("kind", LINEARS)
@pytest.mark.parametrize("name", cases("mod_lorentz_linear"))
def test_linear(name: str, kind: str, dtype: torch.dtype) -> None:
    case, info = load("mod_lorentz_linear", name, dtype)
    n, m = info["in_features"], info["out_features"]
    # Both latent projections have the width of their main part plus one rotary pair.
    if kind == "row":
        config = case.config(dim=m + 1, inter_dim=n)
    else:
        config = case.config(dim=n, qk_nope_head_dim=m - 2, kv_lora_rank=m - 2)
    leaf = leaf_of_layer(config, *LINEARS[kind])
    leaf.load(case)
    euclidean = "x_manifold" in info["kwargs"]
    x = case.space("x", ambient=not euclidean)
    if euclidean:
        # The release sends x through an exponential map whose norm comes out clamped at 1e-4.
        n = 1e-4 / case.c.sqrt()
        x = x * (torch.sinh(n) / n)
    y, _ = leaf.module(x)
    if info["num_heads"] > 1:
        y = y.unflatten(-1, (info["num_heads"], -1))
    case.assert_outputs(y=case.output(y, space_only="return_space" in info["kwargs"]))
    case.assert_input_gradients()
    leaf.assert_gradients(case)


@pytest.mark.parametrize("name", cases("mod_lorentz_rmsnorm"))
def test_norm(name: str, dtype: torch.dtype) -> None:
    case, info = load("mod_lorentz_rmsnorm", name, dtype)
    config = case.config(dim=info["dim"] + 1)
    assert config.layernorm_epsilon == info["eps"]
    leaf = leaf_of_layer(config, "input_layernorm", "layers.0.attn_norm.")
    leaf.load(case)
    y = leaf.module(case.space("x", ambient="space_only" not in info["kwargs"]))
    case.assert_outputs(y=case.output(y, space_only="return_space" in info["kwargs"]))
    case.assert_input_gradients()
    leaf.assert_gradients(case)


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("name", cases("mod_lresnet"))
def test_residual(name: str, joined: bool, dtype: torch.dtype) -> None:
    """By itself, and finished by a norm."""
    case, info = load("mod_lresnet", name, dtype)
    if case.tensors.get("param/w_y", torch.empty(1)).numel() != 1 or "in/weight" in case.tensors:
        pytest.skip("no leaf weighs tokens differently; test_reference.py has the function")
    learned = "param/scale" in case.tensors
    config = case.config(helm={"learn_residual_scale": learned}, dim=case.tensors["in/x"].shape[-1])
    leaf = leaf_of_layer(config, "self_attn_bda", "layers.0.attn_res.")
    leaf.load(case)
    assert isinstance(leaf.module, LorentzResidual)
    leaf.module.scale, leaf.module.joined = info["fixed_scale"] or 1.0, joined
    x, y = case.space("x"), case.space("y")
    z = leaf.module(training=True, fused=False)((y, None), x, 0.0)
    if joined:
        z, _ = z(x.new_ones(x.shape[-1]), 1e-5)
    case.assert_outputs(z=case.output(z))
    case.assert_input_gradients()
    if "param/scale" in info["without_grad"]:
        # The release takes a log scale of zero for no scale.
        leaf.module.log_scale.grad = None
    leaf.assert_gradients(case, without=("scale",))


@pytest.mark.parametrize("name", cases("mod_feedforward"))
def test_feed_forward(name: str, dtype: torch.dtype) -> None:
    case, info = load("mod_feedforward", name, dtype)
    config = case.config(dim=info["dim"], inter_dim=info["inter_dim"])
    leaf = leaf_of_layer(config, "mlp", "layers.0.ffn.")
    leaf.load(case)
    y, _ = leaf.module(case.space("x"))
    case.assert_outputs(y=case.output(y))
    case.assert_input_gradients()
    leaf.assert_gradients(case)


@pytest.mark.parametrize("name", cases("mod_expert"))
def test_expert(name: str, dtype: torch.dtype) -> None:
    case, info = load("mod_expert", name, dtype)
    config = case.config(dim=info["dim"], mice_inter_dim=info["inter_dim"])
    own = "param/expert_manifold.k"
    same_manifold = own not in case.tensors
    if same_manifold:
        case.tensors[own] = case.c.detach()
    path, released = "mlp.experts.local_experts.0", "layers.0.ffn.experts.0."
    leaf = leaf_of_layer(config, path, released, moe=True)
    leaf.load(case)
    y = leaf.module(case.space("x").flatten(0, 1)).view_as(case.inputs["x"])
    case.assert_outputs(y=case.output(y))
    if same_manifold:
        # The golden gradient is by both curvatures at once; the expert's is that of its softplus.
        raw = leaf.module.curvature.raw
        case.c.grad += (raw.grad / raw.detach().sigmoid()).squeeze()
        raw.grad = None
    case.assert_input_gradients()
    leaf.assert_gradients(case, without=("expert_manifold.k",))


@pytest.mark.parametrize("name", cases("mod_embeddings"))
def test_embedding(name: str, dtype: torch.dtype) -> None:
    case, info = load("mod_embeddings", name, dtype)
    vocab_size, dim = case.tensors["param/embedding"].shape
    curvatures = dict(embedding_curvature=info["c_in"], curvature=info["c_out"])
    config = case.config(helm={"embedding": "lorentz", **curvatures}, dim=dim)
    module = LanguageModelEmbedding(config, vocab_size, 1, "rope").to(DEVICE)
    module.register_forward_hook(to_hidden_curvature)
    leaf = Leaf(module, config, "embedding.", "embed.")
    leaf.load(case)
    y = module(case.get("in/tokens"), None).transpose(0, 1)
    case.assert_outputs(y=lift(y, info["c_out"]))
    leaf.assert_gradients(case)
