"""What a forward is given it uses or refuses, as transformers, Trainer and PEFT call it."""

import inspect
import logging
import warnings

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedConfig, Trainer
from transformers import TrainingArguments as Arguments

from helm_megatron.conversion.to_hf import code_files
from helm_megatron.hf.configuration_helm import CODE_VERSION, HelmConfig
from helm_megatron.hf.experts_helm import bounded_softplus
from helm_megatron.hf.modeling_helm import CACHE, HelmForCausalLM
from helm_megatron.moe import curvature
from tests.hf.test_modeling import assert_close, checkpoint_gradients

COMMON = dict(
    vocab_size=61,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=64,
    initializer_range=0.3,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    pad_token_id=0,
)
LATENT = dict(
    kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, rope_interleaved=True
)
EXPERTS = dict(
    n_routed_experts=3,
    moe_layers=[0, 1],
    moe_intermediate_size=12,
    shared_expert_intermediate_size=12,
    mice_combine="reference",
)
EUCLIDEAN = dict(geometry="euclidean")


def make(**settings):
    torch.manual_seed(0)
    return HelmForCausalLM(HelmConfig(**COMMON | settings)).eval()


def tokens(batch=2, length=10):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, 61, (batch, length), generator=generator)


def travelling_modules():
    """One of each class of the code that travels with a checkpoint."""
    files = {path.stem for path in code_files()}
    models = make(), make(**LATENT, **EXPERTS), make(**EUCLIDEAN)
    found = {type(module): module for model in models for module in model.modules()}
    return [m for cls, m in found.items() if cls.__module__.rsplit(".", 1)[-1] in files]


MODULES = travelling_modules()


def test_all_kinds_of_modules_are_tested():
    names = "Model ForCausalLM DecoderLayer Attention LatentAttention MoE Router Expert MLP Linear"
    wanted = {f"Helm{name}" for name in [*names.split(), "RMSNorm", "Residual"]}
    assert {type(module).__name__ for module in MODULES} == wanted | {"EuclideanResidual"}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: type(module).__name__)
def test_an_unknown_keyword_is_refused(module):
    parameters = inspect.signature(module.forward).parameters.values()
    assert not [p for p in parameters if p.kind is inspect.Parameter.VAR_KEYWORD]
    wanted = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    given = {name: torch.zeros(1) for name in wanted} or {"input_ids": tokens()}
    with pytest.raises(TypeError, match="unknown_keyword"):
        module(**given, unknown_keyword=None)


@pytest.mark.parametrize("settings", [{}, LATENT], ids=["heads", "latent"])
def test_both_names_of_the_cache(settings):
    model, ids = make(**settings), tokens()
    with torch.no_grad():
        whole = model(ids, use_cache=False)
        assert getattr(whole, CACHE) is None
        for name in ("cache", "past_key_values"):
            cache = DynamicCache(config=model.config)
            first = model(ids[:, :7], **{name: cache})
            assert first[CACHE] is cache and cache.get_seq_length() == 7
            assert_close(model(ids[:, 7:], **{name: cache}).logits, whole.logits[:, 7:])
        with pytest.raises(ValueError, match="either cache or past_key_values"):
            model(ids[:, :1], cache=cache, past_key_values=cache)


@pytest.mark.parametrize("settings", [{}, LATENT], ids=["heads", "latent"])
@pytest.mark.parametrize("search", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generation_says_nothing(settings, search, monkeypatch):
    """Padded prompts, with cache and without: the same text, and nothing is deprecated."""
    said = []
    monkeypatch.setattr(logging.Logger, "warning_once", lambda _, text, *more: said.append(text))
    model, ids = make(**settings), tokens(3)
    mask = torch.ones_like(ids)
    mask[1, :2] = mask[2, :5] = 0
    options = dict(attention_mask=mask, max_new_tokens=9, do_sample=False, **search)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cached = model.generate(ids, use_cache=True, **options)
        assert torch.equal(cached, model.generate(ids, use_cache=False, **options))
        given = DynamicCache(config=model.config)
        assert torch.equal(cached, model.generate(ids, **{CACHE: given}, **options))
    assert not said
    with pytest.raises(ValueError, match="unknown_keyword"):
        model.generate(ids, unknown_keyword=1, **options)


def test_attention_weights_are_refused():
    model, ids = make(), tokens()
    with pytest.raises(ValueError, match="output_attentions"):
        model(ids, output_attentions=True)
    model(ids, output_attentions=False)
    model.config._output_attentions = True
    with pytest.raises(ValueError, match="output_attentions"):
        model(ids)
    model(ids, output_attentions=False)


def test_kinds_of_output():
    model, ids = make(), tokens()
    hidden = model(ids, output_hidden_states=True).hidden_states
    assert len(hidden) == 3
    assert model(ids).hidden_states is None
    plain = model(ids, use_cache=False, return_dict=False)
    assert type(plain) is tuple and len(plain) == 1
    model.config.output_hidden_states, model.config.return_dict = True, False
    logits, cache, again = model(ids)
    assert torch.equal(again[-1], hidden[-1]) and cache.get_seq_length() == 10
    assert model(ids, output_hidden_states=False, return_dict=True).hidden_states is None
    assert model(ids, logits_to_keep=3, return_dict=True).logits.shape[1] == 3
    assert_close(
        model(ids, return_dict=True, logits_to_keep=torch.tensor([9])).logits, logits[:, 9:]
    )


def test_checkpointed_gradients_and_the_cache():
    """The backward pass would write into it again; without gradients it works as ever."""
    model, ids = make(), tokens()
    options = dict(max_new_tokens=5, do_sample=False, attention_mask=torch.ones_like(ids))
    wanted = model.generate(ids, **options)
    checkpoint_gradients(model.train())
    assert torch.equal(model.generate(ids, **options), wanted)
    assert getattr(model(ids), CACHE) is None
    for given in ({"use_cache": True}, {"cache": DynamicCache(config=model.config)}):
        with pytest.raises(ValueError, match="no cache in training with checkpointed"):
            model(ids, **given)


def test_the_loss_of_a_step_counts_all_its_labels():
    model, ids = make(), tokens(4)
    mean, total = model(ids, labels=ids).loss, model(ids, labels=ids, num_items_in_batch=9).loss
    assert_close(total, mean * 36 / 9)
    assert model(ids, num_items_in_batch=9).loss is None


def test_trainer(tmp_path):
    """Two batches of unequal numbers of labels, accumulated, are one; evaluation has a loss."""
    rows = [{"input_ids": row, "labels": row.clone()} for row in tokens(2)]
    rows[0]["labels"][:6] = -100
    trained = []
    for size in (1, 2):
        options = dict(per_device_train_batch_size=size, gradient_accumulation_steps=2 // size)
        options |= dict(max_steps=1, report_to=[], save_strategy="no", use_cpu=True, seed=0)
        arguments = Arguments(tmp_path, max_grad_norm=0, **options)
        trainer = Trainer(make(), arguments, train_dataset=rows, eval_dataset=rows)
        assert trainer.model_accepts_loss_kwargs and trainer.label_names == ["labels"]
        trainer.train()
        trained.append(trainer.evaluate()["eval_loss"])
    assert trained[0] == pytest.approx(trained[1], rel=1e-5)
    assert trained[0] != pytest.approx(Trainer(make(), arguments).evaluate(rows)["eval_loss"])


def test_peft():
    """It hands over output_attentions, return_dict and such, as None."""
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["o_proj"], r=2)
    model, ids = peft.get_peft_model(make(), lora), tokens()
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    options = dict(input_ids=ids, max_new_tokens=4, do_sample=False)
    options |= dict(attention_mask=torch.ones_like(ids))
    wanted = make().generate(**options)
    assert torch.equal(model.eval().generate(**options), wanted)


def test_misspelled_settings_are_refused():
    for key, meant in {
        "kv_lora_rnk": "kv_lora_rank",
        "rope_interleave": "rope_interleaved",
        "curvatures": "curvature",
        "num_experts_per_token": "num_experts_per_tok",
    }.items():
        with pytest.raises(TypeError, match=f"no {key}: is {meant} meant"):
            HelmConfig(**COMMON, **{key: 1})
    # What transformers itself may put there is let through.
    theirs = GenerationConfig().to_dict() | PreTrainedConfig().to_dict()
    theirs |= dict(torch_dtype="float32", num_labels=2, name_or_path="x", attn_implementation=None)
    theirs |= dict(quantization_config=None, auto_map={}, unrelated="kept")
    assert HelmConfig(**theirs | COMMON).unrelated == "kept"


def test_settings_of_newer_code_are_refused():
    with pytest.raises(ValueError, match="code version"):
        HelmConfig(**COMMON, code_version=CODE_VERSION + 1)


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_curvatures_of_experts_have_the_bounds_of_training(direction):
    """Values and gradients, below, within and above."""
    results = []
    for function in (bounded_softplus, curvature.bounded_softplus):
        raw = torch.tensor([-20.0, 0.5, 1500.0], requires_grad=True)
        out = function(raw)
        out.backward(torch.full_like(out, direction))
        results.append((out.detach(), raw.grad))
    torch.testing.assert_close(*results)
    assert results[0][0].tolist() == pytest.approx([1e-3, 0.974077, 1e3])
