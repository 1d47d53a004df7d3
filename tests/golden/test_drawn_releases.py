"""Released models with arguments drawn at random, against the formulas in ambient coordinates.

A conversion compares its source with its result, and both come from the importer's own config: a
setting that the importer drops is missing on both sides. `ambient.py` reads the released names and
arguments by itself, and is held to the golden data.
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from ambient import StateOf, dense_arguments, logits, mice_arguments
from golden import RTOL, assert_close, load
from released import model_cases, under

from helm_megatron import builder
from helm_megatron.checkpoint import compatibility
from helm_megatron.checkpoint.files import CheckpointError
from helm_megatron.conversion import sources, to_megatron
from helm_megatron.conversion.release.arguments import NOT_THE_MODEL, PRESETS, checked
from helm_megatron.conversion.release.config import config_from_release
from helm_megatron.conversion.to_hf import ConversionError, export
from helm_megatron.hf.modeling_helm import HelmForCausalLM
from tests.conversion.tool import convert, refused

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.mark.parametrize("case", model_cases())
def test_formulas_give_the_golden_logits(case: str) -> None:
    tensors, info = load(case)
    if "attn_mask" in tensors:
        pytest.skip("attention of the formulas is causal, without other masks")
    state = under("param/", tensors)
    with torch.no_grad():
        found = logits(state, info["config"], tensors["tokens"])
    assert_close(found, tensors["logits_eval"], what="logits")


def drawn(seed: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Arguments and fp32 tensors of a model; every third is a HELM-D."""
    draw = random.Random(seed)
    released = dense_arguments(draw) if seed % 3 == 0 else mice_arguments(draw)
    state = StateOf(released, seed, learned_scales=seed % 2 == 0).state
    kinds = {torch.float64: torch.float32, torch.complex128: torch.complex64}
    return released, {name: tensor.to(kinds[tensor.dtype]) for name, tensor in state.items()}


def expected_logits(
    state: dict[str, torch.Tensor], released: dict[str, Any], tokens: torch.Tensor
) -> torch.Tensor:
    exact = {n: t.double() for n, t in state.items() if not t.is_complex()}
    with torch.no_grad():
        return logits(exact, released, tokens)


def saved(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    torch.save({"global_step": 7, "model_state_dict": state}, folder / "Step7.pt")
    return folder / "Step7.pt"


@pytest.mark.parametrize("seed", range(6))
def test_drawn_model(seed: int, tmp_path: Path) -> None:
    released, state = drawn(seed)
    tokens = torch.randint(released["vocab_size"], (2, 19))
    expected = expected_logits(state, released, tokens)
    source = sources.release(saved(tmp_path, state), released)

    export(source, tmp_path / "hf")
    model = HelmForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    with torch.no_grad():
        actual = model(tokens).logits
    assert_close(actual, expected, RTOL[torch.float32], what=f"Hugging Face, {released}")

    to_megatron.convert_source(source, tmp_path / "megatron")
    args = compatibility.saved_args(tmp_path / "megatron" / "release")
    actual = to_megatron.megatron_logits(
        tmp_path / "megatron", args, tokens, released["vocab_size"]
    )
    assert_close(actual, expected, RTOL[torch.float32], what=f"Megatron, {released}")


def test_model_config_keeps_the_transformers_own_values() -> None:
    """Megatron's model config has fields of its transformer config, and sets both."""
    released, state = drawn(1)
    config = config_from_release(released, state)
    kept = {name: value for name, value in vars(config).items() if name != "helm"}
    builder.model_config(config, vocab_size=7)
    assert config.rotary_base == released["rope_theta"]
    assert {name: getattr(config, name) for name in kept} == kept


WRONG_ARGUMENTS = [
    ({"rope_teta": 5000}, "has rope_teta, which is read by nothing; is rope_theta meant"),
    ({"heads_of_gold": 1}, "has heads_of_gold, which is read by nothing"),
    ({"project_emb": "False"}, "has project_emb 'False', which is not true or false"),
    ({"dim": 17.5}, "has dim 17.5, which is not a number from 1 to"),
    ({"qk_rope_head_dim": 6}, "qk_rope_head_dim 6 rotates 5 dimensions"),
    ({"moe_inter_dim": 99}, "has moe_inter_dim 99 and, which is the same,"),
    ({"q_lora_rank": 8}, "q_lora_rank 8"),
    ({"use_hope": False}, "use_hope is false"),
    ({"original_seq_len": 8}, "is more than original_seq_len 8"),
    ({"vocab_size": 3}, "vocab_size is 3, the tensors have"),
    ({"curvatures": [0.7, 1.0, 1.2]}, r"curvatures has 1.0, but manifold_hidden.k is 1.6"),
    ({"n_dense_layers": 9}, "n_dense_layers 9 is more than n_layers"),
]


@pytest.mark.parametrize(("wrong", "said"), WRONG_ARGUMENTS)
def test_argument_that_cannot_be(wrong: dict[str, Any], said: str, tmp_path: Path) -> None:
    released, state = drawn(1)
    with pytest.raises(ConversionError) as error:
        sources.release(saved(tmp_path, state), released | wrong)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_kind_of_table(tmp_path: Path) -> None:
    released, state = drawn(1)
    other = released | {"project_emb": not released["project_emb"]}
    with pytest.raises(ConversionError, match="project_emb is"):
        sources.release(saved(tmp_path, state), other)


def test_rotary_table_of_another_base(tmp_path: Path) -> None:
    released, state = drawn(0)
    path = saved(tmp_path, state)
    with pytest.raises(ConversionError, match=f"its own base is {released['rope_theta']}"):
        sources.release(path, released | {"rope_theta": 40})
    state["freqs_complex"] = state["freqs_complex"].real
    with pytest.raises(ConversionError, match="freqs_complex is not complex"):
        sources.release(saved(tmp_path, state), released)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("layers.0.manifold.k", 2.0, "layers.0.manifold.k is 2 and manifold_hidden.k 1.6"),
        ("manifold_hidden.k", 2e3, "manifold_hidden.k is 2000: curvatures are from 0.001 to 1000"),
        ("layers.1.ffn.experts.0.expert_manifold.k", 2e3, "expert_manifold.k: curvature 2000"),
        ("layers.1.ffn.experts.0.w2.c", 7.0, "experts.0.w2.c is 7 and"),
    ],
)
def test_curvature(name: str, value: float, said: str, tmp_path: Path) -> None:
    released, state = drawn(1)
    state[name] = torch.tensor(value)
    with pytest.raises((ConversionError, CheckpointError)) as error:
        sources.release(saved(tmp_path, state), released)
    assert said in str(error.value)


def test_tensors_that_are_not_the_models(tmp_path: Path) -> None:
    released, state = drawn(1)
    key = "layers.1.attn.wkv_b.linear.bias"
    for changed, said in (
        ({n: t for n, t in state.items() if n != key}, f"Step7.pt lacks {key}"),
        (state | {"layers.1.attn.gate": torch.ones(3)}, "has layers.1.attn.gate, which its arg"),
        (state | {key: torch.ones(3)}, f"has {key} of shape (3,), where its arguments say"),
    ):
        with pytest.raises(CheckpointError) as error:
            sources.release(saved(tmp_path, changed), released)
        assert said in str(error.value) and "\n" not in str(error.value)


def test_names_of_the_evaluation_code(tmp_path: Path) -> None:
    released, state = drawn(1)
    released["moe_inter_dim"] = released.pop("mice_inter_dim")
    ignored = dict.fromkeys(NOT_THE_MODEL, 1) | {"original_seq_len": 4096}
    assert sources.release(saved(tmp_path, state), released | ignored).config.hidden_size > 1


def test_arch_without_underscores(tmp_path: Path) -> None:
    released, state = drawn(0)
    path = saved(tmp_path, state)
    sources.release(path, released | {"arch": released["arch"].replace("_", "")})
    with pytest.raises(ConversionError, match="'L6W384A6': heads of 64 rotates 63 dimensions"):
        sources.release(path, {"arch": "L6W384A6"})


def test_presets(tmp_path: Path) -> None:
    for name, released in PRESETS.items():
        assert checked(released, dense=name.startswith("helm_d")) == released
    assert PRESETS["mice_1b"]["mice_inter_dim"] == 1820
    released, state = drawn(1)
    out = tmp_path / "out"
    flags = ["--from", "helm-release", "--to", "hf", "--load", saved(tmp_path, state)]
    flags += ["--save", out]
    said = convert(*flags, "--release-model", "mice_120m")
    refused(said, out, "Step7.pt lacks layers.3.attn_norm.weight (and ", " more such)")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(released))
    both = ["--release-model", "mice_120m", "--release-config", config]
    refused(convert(*flags, *both), out, "--release-config or --release-model")
