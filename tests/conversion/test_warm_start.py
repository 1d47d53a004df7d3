"""HELM-D from Llama weights: the Euclidean model in the limit of small scales."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from helm_megatron.conversion.to_hf import ConversionError
from helm_megatron.conversion.to_megatron import warm_start
from helm_megatron.conversion.warm_start import helm_d
from helm_megatron.hf.modeling_helm import HelmForCausalLM
from tests.conversion.tool import convert, refused

pytestmark = pytest.mark.usefixtures("one_process")


def llama(folder, **settings):
    torch.manual_seed(0)
    small = dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=3)
    small |= dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
    model = LlamaForCausalLM(LlamaConfig(**small | settings, initializer_range=0.3)).eval()
    model.save_pretrained(folder)
    return model


def difference(folder, model, scale, tokens):
    config, tensors = helm_d(folder, scale)
    helm = HelmForCausalLM(config).eval()
    helm.load_state_dict({name: tensors.read(name) for name in tensors.names()})
    helm, model = helm.double(), model.double()
    with torch.no_grad():
        theirs = model(tokens).logits
        return ((helm(tokens).logits - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize(
    "settings",
    [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}],
    ids=["plain", "tied", "biases"],
)
def test_logits_in_the_limit(settings, tmp_path):
    model = llama(tmp_path, **settings)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    tokens = torch.randint(61, (2, 40), generator=torch.Generator().manual_seed(1))
    errors = [difference(tmp_path, model, scale, tokens) for scale in (1e-2, 1e-3, 1e-4, 1e-5)]
    # The error of the scores falls with the scale; the other errors with its square.
    assert all(finer < coarser / 5 for coarser, finer in zip(errors, errors[1:], strict=False))
    assert errors[-1] < 1e-3


def test_to_megatron(tmp_path, capsys):
    llama(tmp_path / "llama")
    warm_start(tmp_path / "llama", tmp_path / "megatron", scale=1e-3)
    assert "warm start at scale 0.001: logits differ by" in capsys.readouterr().err
    assert (tmp_path / "megatron/release/.metadata").is_file()


def test_command_line(tmp_path, capsys):
    folder, out = tmp_path / "llama", tmp_path / "out"
    llama(folder)
    flags = ["--from", "hf", "--to", "megatron", "--load", folder, "--save", out]
    refused(convert(*flags, "--warm-start-scale", 2), out, "--warm-start-scale 2.0: must be")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])
    refused(convert(*flags), out, "model.safetensors is truncated or damaged")
    (folder / "model.safetensors").write_bytes(weights)
    assert convert(*flags, "--warm-start-scale", 1e-4) is None
    assert "warm start at scale 0.0001: logits differ by" in capsys.readouterr().err
    assert (out / "latest_checkpointed_iteration.txt").read_text() == "release"


def test_other_architectures_are_refused(tmp_path):
    llama(tmp_path / "gelu", hidden_act="gelu")
    with pytest.raises(ConversionError, match="HELM-D has no hidden_act 'gelu'"):
        helm_d(tmp_path / "gelu")
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "gelu").config
    assert config.model_type == "llama"
    with pytest.raises(ConversionError, match="--warm-start-scale 0: must be above 0"):
        helm_d(tmp_path / "gelu", 0)
