"""In bf16 the error of each leaf against fp64 is at most twice its Euclidean counterpart's."""

import pytest
import torch

from helm_megatron.kernels.augment.plain import augment_key, augment_query, augment_value
from helm_megatron.layers import attention
from helm_megatron.layers.residual import LorentzResidual
from helm_megatron.specs import layer_spec, leaves_of
from tests.layers.models import dense, mice, model, part_of, perturb

pytestmark = pytest.mark.usefixtures("one_process")

SEEDS = range(4)
WIDTH, TOKENS = 64, (64, 2)


def one_decision(module, *inputs):
    """What a leaf without discrete decisions decides: the same for every token."""
    return torch.zeros(*TOKENS, 1)


def rms_error(module, apply, inputs, decide):
    """Error of bf16 relative to the same function of the same (rounded) numbers in fp64.

    Tokens on which rounding changes a discrete decision, as another expert, do not count.
    """
    with torch.no_grad():
        rounded = apply(module.bfloat16(), *inputs).double()
        decided = decide(module, *inputs)
        inputs = [x.double() for x in inputs]
        exact = apply(module.double(), *inputs)
        same = (decide(module, *inputs) == decided).view(*TOKENS, -1).all(-1)
    assert same.float().mean() > 0.95
    rounded, exact = rounded[same], exact[same]
    return ((rounded - exact).square().mean() / exact.square().mean()).sqrt().item()


def assert_error_at_most_twice(make, apply, count=1, decide=one_decision):
    """make(geometry) builds the leaf; apply(leaf, *inputs) runs it on `count` random inputs."""
    errors = {"lorentz": 0.0, "euclidean": 0.0}
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        inputs = [torch.randn(*TOKENS, WIDTH, generator=generator).bfloat16() for _ in range(count)]
        for geometry in errors:
            module = perturb(make(geometry), seed=seed)
            errors[geometry] += rms_error(module, apply, inputs, decide)
    assert 0 < errors["lorentz"] <= 2 * errors["euclidean"], errors


@pytest.mark.parametrize("kind", ["column", "row", "replicated"])
def test_linear(kind):
    def make(geometry):
        options = dict(init_method=lambda w: torch.nn.init.normal_(w, std=WIDTH**-0.5), bias=False)
        options |= dict(skip_bias_add=True) | ({"input_is_parallel": True} if kind == "row" else {})
        config = dense(helm={"geometry": geometry})
        return getattr(leaves_of(config), kind)(WIDTH, 48, config=config, **options)

    assert_error_at_most_twice(make, lambda linear, x: linear(x)[0])


def test_norm():
    assert_error_at_most_twice(
        lambda geometry: part_of(dense(helm={"geometry": geometry}), "input_layernorm"),
        lambda norm, x: norm(x),
    )


class Sum(torch.nn.Module):
    """The Euclidean residual."""

    def forward(self, x, f):
        return x + f


def test_residual():
    def make(geometry):
        return LorentzResidual(dense()) if geometry == "lorentz" else Sum()

    def apply(module, x, f):
        return module.combine(x, f) if isinstance(module, LorentzResidual) else module(x, f)

    assert_error_at_most_twice(make, apply, count=2)


@pytest.mark.parametrize("config", [dense, mice])
@pytest.mark.parametrize("in_lanes", [False, True])
def test_core_attention(config, in_lanes, monkeypatch):
    """In fp32, as on the CPU, and with times in bf16 lanes, as a GPU's fused kernels have it."""
    if in_lanes:
        monkeypatch.setattr(attention.LorentzAttention, "computed_in", lambda self, x: x)

    def make(geometry):
        return part_of(config(helm={"geometry": geometry}), "self_attention.core_attention")

    def apply(core, q, k, v):
        q, k, v = (x.unflatten(-1, (4, 16)) for x in (q, k, v))
        return core(q, k, v, None)

    assert_error_at_most_twice(make, apply, count=3)


@pytest.mark.parametrize("config", [dense, mice])
def test_self_attention(config):
    def make(geometry):
        return part_of(config(helm={"geometry": geometry}), "self_attention")

    assert_error_at_most_twice(make, lambda attention, x: attention(x, None)[0])


@pytest.mark.parametrize("config", [dense, mice])
def test_feed_forward(config):
    """A dense gated layer, and a mixture of experts with a shared one."""

    def make(geometry):
        return part_of(config(helm={"geometry": geometry}), "mlp").eval()

    def experts(mlp, x):
        return mlp.router(x)[1]

    decide = experts if config is mice else one_decision
    assert_error_at_most_twice(make, lambda mlp, x: mlp(x)[0], decide=decide)


def test_output_layer():
    def make(geometry):
        return model(dense(helm={"geometry": geometry})).output_layer

    assert_error_at_most_twice(make, lambda layer, x: layer(x)[0])


def test_final_norm():
    def make(geometry):
        return model(dense(helm={"geometry": geometry})).decoder.final_layernorm

    assert_error_at_most_twice(make, lambda norm, x: norm(x))


def test_layer_spec_is_what_the_model_uses():
    """The parts above come from the specs that pretraining builds."""
    config = dense()
    spec = layer_spec(config, leaves_of(config), moe=False)
    assert spec.submodules.self_attn_bda.module is LorentzResidual


@pytest.mark.parametrize("config", [dense, mice])
def test_attention_in_bf16_does_not_see_the_future(config, monkeypatch):
    """Later tokens change no bit of earlier outputs."""
    monkeypatch.setattr(attention.LorentzAttention, "computed_in", lambda self, x: x)
    module = perturb(part_of(config(torch.bfloat16), "self_attention"))
    x = torch.randn(*TOKENS, WIDTH).bfloat16()
    other = x.clone()
    other[40:] = torch.randn(24, 2, WIDTH).bfloat16()
    with torch.no_grad():
        assert torch.equal(module(x, None)[0][:40], module(other, None)[0][:40])


def test_bf16_lanes_carry_times_to_fp32_or_nearly():
    """Two lanes of eight bits, not one: q_t k_t - <q_s,k_s> cancels where heads lie far out."""
    q, k = (3 * torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(0))).bfloat16()
    tau, c = torch.tensor(0.5), 1.3
    lanes = augment_query(q, tau, c).double() @ augment_key(k, c).double().T
    scaled = (q.float() * (2 / tau)).bfloat16()
    q_time = (scaled.double().square().sum(-1) + c * (2 / tau) ** 2).sqrt()
    k_time = (k.double().square().sum(-1) + c).sqrt()
    times = q_time[:, None] * k_time
    scores = scaled.double() @ k.double().T - times
    assert (lanes - scores).abs().le(2**-14 * times).all()
    value = augment_value(k, c).double()
    assert (value[:, 16:].sum(-1) - k_time).abs().le(2**-14 * k_time).all()
