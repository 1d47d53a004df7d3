"""Residuals finished by the norm after them: the same model, whatever is recomputed."""

import copy
from unittest import mock

import pytest
import torch
from megatron.core.tensor_parallel.random import CheckpointWithoutOutput

from helm_megatron.layers import norm
from helm_megatron.layers.residual import LorentzResidual
from helm_megatron.specs import leaves_of
from tests.layers.models import dense, mice, model, perturb

pytestmark = pytest.mark.usefixtures("one_process")

FULL = {"recompute_granularity": "full"}
SELECTIVE = {"recompute_granularity": "selective"}
RECOMPUTE = {
    "nothing": {},
    "each layer": FULL | {"recompute_method": "uniform", "recompute_num_layers": 1},
    "two layers at once": FULL | {"recompute_method": "uniform", "recompute_num_layers": 2},
    # The third layer, not recomputed, reads what comes out of a recomputed one.
    "the first two": FULL | {"recompute_method": "block", "recompute_num_layers": 2},
    "attention": SELECTIVE | {"recompute_modules": ["core_attn"]},
    "norms": SELECTIVE | {"recompute_modules": ["layernorm"]},
    "feed-forward": SELECTIVE | {"recompute_modules": ["mlp", "moe", "shared_experts"]},
}
TOKENS = torch.randint(96, (2, 32), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def without_fp8(monkeypatch):
    """Let Megatron recompute norms where Transformer Engine, which it asks about fp8, is absent."""
    monkeypatch.setattr(CheckpointWithoutOutput.__init__, "__defaults__", (None,))


def make(config, **options):
    """A model of three layers, every parameter away from its trivial start."""
    # Every expert is chosen, and has a gradient.
    experts = dict(moe_layer_freq=[0, 1, 0], moe_router_topk=4, moe_router_dtype="fp64")
    options |= experts if config is mice else {}
    return perturb(model(config(num_layers=3, **options)), size=0.3)


def residuals(lm):
    return [m for m in lm.modules() if isinstance(m, LorentzResidual)]


def apart(lm):
    """The model, its residuals from now on leaving the norms alone."""
    for module in residuals(lm):
        module.joined = False
    return lm


def loss_of(lm):
    torch.manual_seed(3)
    return lm(TOKENS, torch.arange(32).expand(2, -1), None, labels=TOKENS.roll(-1)).mean()


def loss_and_gradients(lm):
    lm.zero_grad()
    loss = loss_of(lm)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in lm.named_parameters()}


def assert_as_in_two_steps(lm):
    loss, gradients = loss_and_gradients(lm)
    expected_loss, expected = loss_and_gradients(apart(lm))
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0)
    assert None not in expected.values() and all(g.abs().max() > 0 for g in expected.values())
    torch.testing.assert_close(gradients, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("config", [dense, mice])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_loss_and_gradients_are_those_of_two_steps(config, recompute, dropout):
    options = RECOMPUTE[recompute] | {"hidden_dropout": dropout}
    assert_as_in_two_steps(make(config, dtype=torch.float64, **options))


@pytest.mark.parametrize(
    "helm",
    [
        {"learn_residual_scale": True, "embedding_curvature": 0.6},
        {"curvature": 1.5, "layer_curvature": (0.5, 2.0)},
    ],
)
def test_with_a_learned_scale_and_curvatures(helm):
    assert_as_in_two_steps(make(dense, dtype=torch.float64, helm=helm))


def norms_computed_alone(call):
    """The weights of the norms that a call computes in a pass of their own."""
    with mock.patch.object(norm, "rms_norm", wraps=norm.rms_norm) as alone:
        call()
    return {id(weight) for (_, weight, _), _ in alone.call_args_list}


def stream_norms(lm):
    layers = lm.decoder.layers
    return [n for layer in layers for n in (layer.input_layernorm, layer.pre_mlp_layernorm)]


@pytest.mark.parametrize("config", [dense, mice])
@pytest.mark.parametrize(
    ("mode", "training"),
    [
        (torch.enable_grad, True),
        (torch.no_grad, True),
        (torch.no_grad, False),
        (torch.inference_mode, False),
    ],
)
def test_only_the_first_norm_of_a_layer_is_computed_alone(config, mode, training):
    lm = make(config).train(training)
    with mode():
        alone = norms_computed_alone(lambda: loss_of(lm))
    assert alone & {id(n.weight) for n in stream_norms(lm)} == {
        id(layer.input_layernorm.weight) for layer in lm.decoder.layers
    }


def test_layers_of_other_curvatures_join_the_norms_within_them():
    lm = make(dense, helm={"layer_curvature": (0.5, 2.0)})
    alone = norms_computed_alone(lambda: loss_of(lm))
    assert alone & {id(n.weight) for n in stream_norms(lm)} == {
        id(layer.input_layernorm.weight) for layer in lm.decoder.layers
    }


@pytest.mark.parametrize(
    "options",
    [
        RECOMPUTE["norms"],
        {"overlap_moe_expert_parallel_comm": True},
        {"cuda_graph_impl": "local"},
        {"fine_grained_activation_offloading": True},
    ],
)
def test_nothing_is_joined_where_only_tensors_pass(options):
    """Megatron runs parts of a layer by themselves there."""
    config = dense()
    for name, value in options.items():
        setattr(config, name, value)
    assert not leaves_of(config).residual_before_norm.params["joined"]
    assert leaves_of(dense()).residual_before_norm.params["joined"]


def test_parameters_and_modules_are_not_listed_twice():
    lm = make(dense)
    listed = [*lm.state_dict()], [name for name, _ in lm.named_modules()]
    assert all(len(set(names)) == len(names) for names in listed)
    assert sum(name.endswith("pre_mlp_layernorm") for name in listed[1]) == 3
    apart(lm)
    assert listed == ([*lm.state_dict()], [name for name, _ in lm.named_modules()])


def test_a_copy_joins_its_own_norms():
    layer = make(dense).decoder.layers[0]
    pair = torch.nn.ModuleList([layer.self_attn_bda, layer.pre_mlp_layernorm])
    residual, after = copy.deepcopy(pair)
    torch.nn.init.constant_(after.weight, 0.0)
    x, f = torch.randn(2, 5, 1, 64)
    normed, out = after(residual(False, False)((f, None), x, 0.0))
    assert normed.abs().max() == 0 and torch.equal(out, layer.self_attn_bda.combine(x, f))


def doubled(layer, inputs, outputs):
    return outputs[0] * 2, outputs[1]


def doubled_in_place(layer, inputs, outputs):
    outputs[0].mul_(2)


@pytest.mark.parametrize("hook", [doubled, doubled_in_place])
@pytest.mark.parametrize("gradients", [False, True])
def test_the_norm_is_that_of_a_stream_changed_by_a_hook(hook, gradients):
    lm = make(dense, dtype=torch.float64)
    with torch.set_grad_enabled(gradients):
        plain = loss_of(lm)
        lm.decoder.layers[0].register_forward_hook(hook)
        loss = loss_of(lm)
        torch.testing.assert_close(loss, loss_of(apart(lm)), rtol=1e-12, atol=0)
    assert not torch.isclose(loss, plain, rtol=1e-6)


def test_weights_are_fetched_before_they_are_used():
    """Megatron gathers those of a distributed optimizer where their module is called."""
    lm = make(dense)
    expected = loss_of(lm)
    for module in stream_norms(lm):
        _fetch_when_called(module)
    torch.testing.assert_close(loss_of(lm), expected)


def _fetch_when_called(module):
    weight = module.weight.detach().clone()
    module.weight.data.fill_(torch.nan)

    def fetch(*_):
        module.weight.data.copy_(weight)

    module.register_forward_pre_hook(fetch)


def kept_bytes(lm):
    """Memory of the distinct storages kept for the backward pass."""
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss_of(lm)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_joined_norms_keep_no_more(dtype):
    lm = make(dense, dtype=dtype)
    joined = kept_bytes(lm)
    assert joined <= kept_bytes(apart(lm))
