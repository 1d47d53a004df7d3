"""Released checkpoints through `helm-release` to Hugging Face: the golden logits."""

import json
from pathlib import Path

import pytest
import torch
from golden import RTOL, assert_close, load
from released import model_cases, under

from helm_megatron.checkpoint.files import CheckpointError
from helm_megatron.hf import sources
from helm_megatron.hf.convert import ConversionError, export
from helm_megatron.hf.modeling_helm import HelmForCausalLM

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


def test_another_models_arguments(tmp_path: Path) -> None:
    path, config = written(tmp_path, "helm_mice_small", torch.float32)
    arguments = json.loads(config.read_text()) | {"kv_lora_rank": 16}
    config.write_text(json.dumps(arguments))
    with pytest.raises(ConversionError, match="has the shape .* does not fit"):
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
