"""A conversion checks itself: wrong mappings, leftovers, memory."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helm_megatron.conversion import hf_names
from helm_megatron.conversion.tensor_files import INDEX, TensorFiles
from helm_megatron.conversion.to_hf import ConversionError, export
from helm_megatron.conversion.to_megatron import convert_folder
from helm_megatron.hf.modeling_helm import HelmForCausalLM
from tests.hf import models

pytestmark = pytest.mark.usefixtures("one_process")
ROOT = Path(__file__).parents[2]


def swapped(first, second):
    """The mapping with two tensors exchanged."""
    right = hf_names.table

    def table(config):
        names = {first: second, second: first}
        return [
            replace(rule, theirs=tuple(names.get(n, n) for n in rule.theirs))
            for rule in right(config)
        ]

    return table


@pytest.mark.parametrize(
    ("model", "first", "second"),
    [
        (models.cases.HELM_D, "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
        (models.cases.HELM_D, "input_layernorm.weight", "post_attention_layernorm.weight"),
        (models.cases.HELM_D, "attn_residual.log_scale", "mlp_residual.log_scale"),
        (models.cases.MICE, "mlp.shared_experts.gate_proj.bias", "mlp.shared_experts.up_proj.bias"),
        (models.cases.MICE, "mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"),
    ],
)
@pytest.mark.parametrize("direction", ["to hf", "to megatron"])
def test_swapped_tensors(direction, model, first, second, monkeypatch, tmp_path):
    wrong = swapped(f"model.layers.*.{first}", f"model.layers.*.{second}")
    source = models.source(model)
    if direction == "to hf":
        monkeypatch.setattr(hf_names, "table", wrong)
        with pytest.raises(ConversionError, match=r"differ by .* nothing was written"):
            export(source, tmp_path / "out")
    else:
        export(source, tmp_path / "hf")
        monkeypatch.setattr(hf_names, "table", wrong)
        with pytest.raises(ConversionError, match=r"differ by .* nothing was written"):
            convert_folder(tmp_path / "hf", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if path.name != "hf"] == []


def test_leftover_and_missing_parameters(tmp_path):
    source = models.source(models.cases.MICE)
    state = source.parameters.state
    state["decoder.layers.0.mlp.new.weight"] = torch.ones(1)
    with pytest.raises(ConversionError, match=r"has decoder\.layers\.0\.mlp\.new\.weight"):
        export(source, tmp_path / "out")
    del state["decoder.layers.0.mlp.new.weight"], state["decoder.layers.1.mlp.router.weight"]
    with pytest.raises(ConversionError, match=r"lacks decoder\.layers\.1\.mlp\.router\.weight"):
        export(source, tmp_path / "out")


def test_shards_and_index(tmp_path):
    source = models.source(models.cases.MICE)
    export(source, tmp_path / "one", verify=False)
    export(source, tmp_path / "many", verify=False, max_shard_bytes=5000)
    one, many = TensorFiles(tmp_path / "one"), TensorFiles(tmp_path / "many")
    assert not (tmp_path / "one" / INDEX).exists() and (tmp_path / "many" / INDEX).exists()
    files = list((tmp_path / "many").glob("model-*.safetensors"))
    assert len(files) > 3 and max(file.stat().st_size for file in files) < 5000 + 4000
    assert sorted(one.names()) == sorted(many.names())
    for name in one.names():
        assert torch.equal(one.read(name), many.read(name))
    HelmForCausalLM.from_pretrained(tmp_path / "many")


STREAM = """
import resource, sys
from dataclasses import replace
from pathlib import Path
from helm_megatron import megatron_patches
megatron_patches.apply()
from helm_megatron.conversion.to_hf import export
from helm_megatron.conversion.to_megatron import convert_folder
from tests.hf.models import large
folder = Path(sys.argv[2])
source = large()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.argv[1] == "to hf":
    export(source, folder / "hf", verify=False, max_shard_bytes=2**26)
else:
    convert_folder(folder / "hf", folder / "megatron", verify=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def memory_of(direction, folder):
    """How many bytes the peak memory of a process grows by in a conversion."""
    command = [sys.executable, "-c", STREAM, direction, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    # ru_maxrss is in KiB on Linux, in bytes on macOS.
    return int(done.stdout.split()[-1]) * (1024 if sys.platform == "linux" else 1)


@pytest.mark.slow
def test_memory_is_bounded_by_the_largest_tensor(tmp_path):
    """A model of 256 MiB goes through in a quarter of that, and back in less than a half."""
    for direction, limit, files in (
        ("to hf", 2**26, "hf/*.safetensors"),
        ("to megatron", 2**27, "megatron/release/*.distcp"),
    ):
        grown = memory_of(direction, tmp_path)
        size = sum(file.stat().st_size for file in tmp_path.glob(files))
        assert size > 2**28
        assert grown < limit, f"{direction}: {grown / 2**20:.0f} MiB for {size / 2**20:.0f}"
        print(f"{direction}: {grown / 2**20:.0f} MiB for {size / 2**20:.0f}")
