"""convert.py --refresh-code: an old export gets the current code; all else of it stays."""

import hashlib
import json
import os
import shutil
from unittest import mock

import pytest
import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from helm_megatron.conversion import to_hf
from helm_megatron.evaluation.errors import EvaluationError
from helm_megatron.evaluation.model import check_code
from helm_megatron.hf.configuration_helm import CODE_VERSION
from helm_megatron.hf.modeling_helm import CACHE
from tests.conversion.tool import convert
from tests.distributed import cases
from tests.hf import models

pytestmark = pytest.mark.usefixtures("one_process")

# As it was: it knows one name of the cache, and nothing is said about the other.
OLD = """
_forward = HelmForCausalLM.forward

def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None,
            use_cache=None, logits_to_keep=0, **kwargs):
    return _forward(self, input_ids, attention_mask, position_ids, past_key_values,
                    use_cache=use_cache, logits_to_keep=logits_to_keep)

HelmForCausalLM.forward = forward
"""


def edit(folder, change):
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


@pytest.fixture
def old(tmp_path):
    """A folder of old code, with a file of the user's own and one read-only."""
    folder = tmp_path / "old"
    models.exported(folder, cases.MICE)
    for name, more in (("modeling", OLD), ("configuration", "\n# as it was\n")):
        with (folder / f"{name}_helm.py").open("a") as code:
            code.write(more)
    (folder / "experts_helm.py").chmod(0o444)
    (folder / "lorentz_helm.py").unlink()
    os.link(to_hf.code_files()[-1], folder / "lorentz_helm.py")  # must not be written through
    (folder / "notes.txt").write_text("mine")

    def remove(fields):
        del fields["code_version"], fields["layer_curvatures"]

    edit(folder, remove)
    return folder


def contents(folder):
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).digest() for p in paths}


def refresh(folder, *more):
    return convert("--from", "hf", "--to", "hf", "--refresh-code", "--load", folder, *more)


def texts(folder):
    """Greedy text of padded prompts with cache and without, by the code in the folder.

    As a new process loads it: transformers remembers the first code of each kind of model.
    """
    with (
        mock.patch.object(CONFIG_MAPPING, "_extra_content", {}),
        mock.patch.object(MODEL_FOR_CAUSAL_LM_MAPPING, "_extra_content", {}),
    ):
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    ids = torch.arange(1, 21).view(2, 10)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    options = dict(attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
    return [model.generate(ids, use_cache=use_cache, **options) for use_cache in (True, False)]


def assert_current(folder, before):
    """The code is that of this checkout, config.json means what it did, the rest is untouched."""
    after = contents(folder)
    code = {path.name: path.read_bytes() for path in to_hf.code_files()}
    assert after.keys() == before.keys()
    changed = {name for name in after if after[name] != before[name]}
    assert changed - code.keys() == {"config.json"}
    assert {name: (folder / name).read_bytes() for name in code} == code
    assert json.loads((folder / "config.json").read_text())["code_version"] == CODE_VERSION
    cached, uncached = texts(folder)
    assert torch.equal(cached, uncached)


def test_in_place(old, capsys):
    before, config = contents(old), json.loads((old / "config.json").read_text())
    cached, uncached = texts(old)
    assert torch.equal(cached, uncached) == (CACHE == "past_key_values")
    with pytest.raises(EvaluationError, match="--refresh-code"):
        check_code(old)
    assert refresh(old) is None
    assert f"{old} is complete" in capsys.readouterr().err
    assert_current(old, before)
    assert torch.equal(texts(old)[0], uncached)
    assert json.loads((old / "config.json").read_text()) == config | {"code_version": CODE_VERSION}
    check_code(old)
    again = contents(old)
    assert refresh(old) is None
    assert contents(old) == again


def test_a_copy(old, tmp_path):
    before = contents(old)
    assert refresh(old, "--save", tmp_path / "new") is None
    assert contents(old) == before
    assert_current(tmp_path / "new", before)
    said = refresh(old, "--save", old / "new")
    assert said == f"error: --save {old / 'new'} is within --load {old}"
    assert "exists and is not empty" in refresh(old, "--save", tmp_path / "new")


def newer(folder):
    edit(folder, lambda fields: fields.update(code_version=CODE_VERSION + 1))


def other_model(folder):
    (folder / "config.json").write_text('{"model_type": "gpt2"}')


def no_config(folder):
    (folder / "config.json").unlink()


def no_tensors(folder):
    (folder / "model.safetensors").unlink()


def other_tensors(folder):
    edit(folder, lambda fields: fields.update(hidden_size=8))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (newer, f"code version {CODE_VERSION + 1}; this code is version {CODE_VERSION}"),
        (other_model, "does not hold a HELM model"),
        (no_config, "config.json cannot be read"),
        (no_tensors, "has neither model.safetensors nor"),
        (other_tensors, "has the shape"),
    ],
)
def test_what_is_no_export_of_ours_is_refused(change, part, old):
    change(old)
    before = contents(old)
    said = refresh(old)
    assert said is not None and said.startswith("error: ") and "\n" not in said and part in said
    assert contents(old) == before


def test_a_failure_half_way_changes_no_file(old, monkeypatch):
    before = contents(old)

    copy = shutil.copy

    def full(source, target):
        if source.name == "experts_helm.py":
            raise OSError(28, "No space left on device")
        return copy(source, target)

    monkeypatch.setattr(shutil, "copy", full)
    assert refresh(old) == f"error: {old} cannot be written: No space left on device"
    assert contents(old) == before


def test_flags(old, tmp_path, capsys):
    def run(*flags):
        return convert(*flags, "--load", old)

    assert "--refresh-code gives" in run("--from", "hf", "--to", "hf", "--save", tmp_path / "new")
    said = run("--from", "hf", "--to", "megatron", "--refresh-code", "--save", tmp_path / "new")
    assert said == "error: --refresh-code is for --from hf --to hf"
    assert run("--from", "hf", "--to", "megatron") == 2
    assert "required: --save" in capsys.readouterr().err
