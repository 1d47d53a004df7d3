"""Released checkpoints through `helm-release` to Hugging Face and Megatron: the golden logits."""

import json
from pathlib import Path

import pytest
import torch
from golden import RTOL, assert_close, load
from released import model_cases, under

from helm_megatron.checkpoint import compatibility
from helm_megatron.checkpoint.files import CheckpointError
from helm_megatron.conversion import hf_names, sources, to_megatron
from helm_megatron.conversion.stored import StoredParameters
from helm_megatron.conversion.to_hf import export
from helm_megatron.hf.modeling_helm import HelmForCausalLM
from tests.conversion.tool import convert, refused

pytestmark = pytest.mark.usefixtures("one_process")


def written(folder: Path, case: str, dtype: torch.dtype) -> tuple[Path, Path]:
    """A `Step*.pt` as the authors write it, and the arguments of its model."""
    tensors, info = load(case)
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in under("param/", tensors).items()
    }
    path, config = folder / "Step7.pt", folder / "config.json"
    torch.save({"global_step": 7, "model_state_dict": state}, path)
    config.write_text(json.dumps(info["config"]))
    return path, config


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("case", model_cases())
def test_golden_logits(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source = sources.release(*written(tmp_path, case, dtype))
    export(source, tmp_path / "hf", verify=dtype == torch.float32)
    tensors, _ = load(case)
    model = HelmForCausalLM.from_pretrained(tmp_path / "hf", dtype=dtype).eval()
    mask = None
    if "attn_mask" in tensors:
        blocked = tensors["attn_mask"]
        mask = ~(blocked | torch.ones_like(blocked).triu(1)).unsqueeze(1)
    with torch.no_grad():
        logits = model(tensors["tokens"], attention_mask=mask).logits
    # The rotary table is fp32 whatever the model's type.
    rtol = max(RTOL[dtype], 1e-6)
    assert_close(logits, tensors["logits_eval"], rtol, what="logits")


@pytest.mark.parametrize("case", model_cases())
def test_to_megatron(case: str, tmp_path: Path) -> None:
    """The tool compares logits; here the parameters are, and the logits with the golden ones."""
    path, released = written(tmp_path, case, torch.float32)
    flags = ["--from", "helm-release", "--to", "megatron", "--load", path, "--save", tmp_path / "m"]
    assert convert(*flags, "--release-config", released) is None
    source = sources.release(path, released)
    stored = StoredParameters(tmp_path / "m" / "release")
    for name in source.parameters.names():
        if hf_names.ignored(name) is not None:
            continue
        before, after = source.parameters.read(name), stored.read(name)
        assert torch.equal(after[: len(before)], before), name
        assert not after[len(before) :].any(), name
    args = compatibility.saved_args(tmp_path / "m" / "release")
    assert args.mice_bias_update == ("proportional" if args.num_experts else "sign")
    tensors, info = load(case)
    if "attn_mask" not in tensors:
        size = info["config"]["vocab_size"]
        logits = to_megatron.megatron_logits(tmp_path / "m", args, tensors["tokens"], size)
        assert_close(logits, tensors["logits_eval"], RTOL[torch.float32], what="logits")


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path, released = written(tmp_path, "helm_d_small", torch.float32)
    (tmp_path / "list.json").write_text("[]")
    out = tmp_path / "out"
    flags = ["--from", "helm-release", "--to", "hf", "--load", path, "--save", out]
    refused(convert(*flags), out, "needs --release-config")
    for bad in ("list.json", "none.json"):
        refused(convert(*flags, "--release-config", tmp_path / bad), out, bad)
    flags += ["--release-config", released]
    cut = tmp_path / "cut.pt"
    cut.write_bytes(path.read_bytes()[:-100])
    refused(convert(*flags, "--load", cut), out, "cut.pt cannot be read")
    assert convert(*flags) is None
    assert "differ by" in capsys.readouterr().err
    assert (out / "config.json").is_file() and (out / "model.safetensors").is_file()


def test_another_models_arguments(tmp_path: Path) -> None:
    path, config = written(tmp_path, "helm_mice_small", torch.float32)
    arguments = json.loads(config.read_text()) | {"kv_lora_rank": 16}
    config.write_text(json.dumps(arguments))
    wrong = r"has layers\.0\.attn\.wkv_a\.linear\.weight of shape \(.*arguments say \(.* more such"
    with pytest.raises(CheckpointError, match=wrong):
        export(sources.release(path, config), tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


class _Foreign:
    def __reduce__(self) -> tuple:
        return print, ("code of a checkpoint ran",)


def test_pickled_code_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save({"model_state_dict": {"a": _Foreign()}}, tmp_path / "Step1.pt")
    with pytest.raises(CheckpointError, match="cannot be read as a released checkpoint"):
        sources.release(tmp_path / "Step1.pt", tmp_path / "none.json")
    assert "ran" not in capsys.readouterr().out
