"""The Hugging Face model by itself: against Megatron's, its cache, generation, training."""

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from helm_megatron.conversion.to_hf import TOLERANCE, export
from helm_megatron.hf.modeling_helm import CACHE
from tests.hf import models

pytestmark = pytest.mark.usefixtures("one_process")

LATENT = [model for model in models.MODELS if model.latent]


def tokens(batch=2, length=40):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(models.VOCABULARY, (batch, length), generator=generator)


def assert_close(actual, expected, tolerance=TOLERANCE):
    difference = (actual - expected).abs().max() / expected.abs().max()
    assert difference <= tolerance, f"off by {difference:.1e}"


def checkpoint_gradients(model):
    """By the name that transformers has for it."""
    new = getattr(model, "activation_checkpointing_enable", None)
    new() if new else model.gradient_checkpointing_enable()


def padded(batch, length):
    """Prompts of unequal length, padded on the left, and their mask."""
    ids, mask = tokens(batch, length), torch.ones(batch, length, dtype=torch.long)
    for row in range(1, batch):
        ids[row, : 3 * row] = 0
        mask[row, : 3 * row] = 0
    return ids, mask


@pytest.mark.parametrize("model", models.MODELS, ids=lambda model: model.name)
def test_logits_are_megatrons(model, tmp_path):
    source = models.source(model)
    export(source, tmp_path / "hf", verify=False)
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=True)
    assert type(hf).__module__.startswith("transformers_modules")
    with torch.no_grad():
        assert_close(hf(tokens()).logits, source.logits(tokens()))


@pytest.mark.parametrize("model", models.MODELS, ids=lambda model: model.name)
def test_cached_logits(model, tmp_path):
    """A prompt, single tokens, and several tokens at once, through one cache."""
    hf = models.exported(tmp_path / "hf", model)
    ids = tokens()
    with torch.no_grad():
        whole = hf(ids, use_cache=False).logits
        cache, parts = None, []
        for part in ids.split([20, 1, 1, 1, 9, 1, 7], dim=1):
            out = hf(part, cache=cache, use_cache=True)
            cache = out[CACHE]
            parts.append(out.logits)
    assert_close(torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize("model", models.MODELS, ids=lambda model: model.name)
def test_greedy_with_cache_is_greedy_without(model, tmp_path):
    hf = models.exported(tmp_path / "hf", model)
    ids, mask = padded(3, 12)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    cached = hf.generate(ids, attention_mask=mask, use_cache=True, **options)
    assert torch.equal(cached, hf.generate(ids, attention_mask=mask, use_cache=False, **options))
    alone = hf.generate(ids[2:, 6:], **options)
    assert torch.equal(cached[2:, 6:], alone), "padding on the left changed the text"


def test_device_map(tmp_path):
    pytest.importorskip("accelerate")
    hf = models.exported(tmp_path / "hf", models.cases.MICE)
    mapped = models.HelmForCausalLM.from_pretrained(tmp_path / "hf", device_map="auto")
    with torch.no_grad():
        assert_close(mapped(tokens()).logits.cpu(), hf(tokens()).logits)


@pytest.mark.parametrize("model", LATENT, ids=lambda model: model.name)
def test_the_cache_holds_latents(model, tmp_path):
    """Per token and layer: the latent, the rotary key, two times a head; nothing else."""
    hf = models.exported(tmp_path / "hf", model)
    config = hf.config
    layers = hf(tokens())[CACHE].layers
    times = 2 * config.num_attention_heads if config.geometry == "lorentz" else 0
    for layer in layers:
        assert layer.keys.shape == (2, 1, 40, config.kv_lora_rank + config.qk_rope_head_dim)
        assert layer.values.shape == (2, 1, 40, times)


@pytest.mark.parametrize("model", models.MODELS[:1] + LATENT[:1], ids=lambda model: model.name)
def test_beams_and_samples(model, tmp_path):
    hf = models.exported(tmp_path / "hf", model)
    ids, mask = padded(2, 8)
    options = {"max_new_tokens": 6, "pad_token_id": 0, "attention_mask": mask}
    cached, uncached = (
        hf.generate(ids, num_beams=3, do_sample=False, use_cache=use_cache, **options)
        for use_cache in (True, False)
    )
    assert torch.equal(cached, uncached)
    torch.manual_seed(0)
    sampled = hf.generate(ids, do_sample=True, top_k=0, **options)
    assert sampled.shape == (2, 14) and sampled.max() < models.VOCABULARY


@pytest.mark.parametrize(
    "model", [models.cases.HELM_D, models.cases.MICE_REFERENCE], ids=lambda model: model.name
)
def test_training_with_checkpointed_gradients(model, tmp_path):
    hf = models.exported(tmp_path / "hf", model).train()
    ids = tokens()
    loss = hf(ids, labels=ids).loss
    loss.backward()
    plain = {name: p.grad.clone() for name, p in hf.named_parameters() if p.grad is not None}
    missing = {name for name, _ in hf.named_parameters()} - plain.keys()
    assert not missing
    hf.zero_grad()
    checkpoint_gradients(hf)
    again = hf(ids, labels=ids).loss
    again.backward()
    assert_close(again.detach(), loss.detach(), 1e-6)
    for name, gradient in plain.items():
        torch.testing.assert_close(dict(hf.named_parameters())[name].grad, gradient, msg=name)


@pytest.mark.parametrize("model", [models.cases.MICE, models.MICE_TWIN], ids=lambda m: m.name)
def test_experts_without_tokens_have_gradients_of_zero(model, tmp_path):
    """Or the ranks of DDP and ZeRO would reduce different parameters."""
    hf = models.exported(tmp_path / "hf", model).train()
    hf(torch.tensor([[3]])).logits.sum().backward()
    gradients = [expert.down_proj.weight.grad for expert in hf.model.layers[1].mlp.experts]
    assert sorted(bool(gradient.any()) for gradient in gradients) == [False, False, True, True]
    assert all(p.grad is not None for p in hf.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "model", [models.cases.HELM_D, models.cases.MICE_Q_LORA], ids=lambda model: model.name
)
def test_bf16(model, tmp_path):
    """Cached and uncached bf16 are about as far from fp32 as Megatron's bf16."""
    source = models.source(model, torch.bfloat16)
    export(source, tmp_path / "hf", verify=False)
    load = models.HelmForCausalLM.from_pretrained
    exact, hf = (load(tmp_path / "hf", dtype=dtype).eval() for dtype in (None, torch.bfloat16))
    exact = exact.float()
    ids = tokens(batch=8)  # a token for which rounding changes the choice of experts weighs little
    with torch.no_grad():
        wanted = exact(ids).logits
        cache = DynamicCache(config=hf.config)
        cached = [hf(part, cache=cache).logits for part in ids.split([20] + [1] * 20, dim=1)]
        errors = [
            (logits.float() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()
            for logits in (source.logits(ids), hf(ids).logits, torch.cat(cached, dim=1))
        ]
    print([f"{error:.1e}" for error in errors])
    assert max(errors[1:]) <= 2 * errors[0], errors
