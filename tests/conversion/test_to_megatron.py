"""Hugging Face to Megatron: bit-identical parameters, and a checkpoint that Megatron loads."""

import json

import pytest
import torch

from helm_megatron.conversion import hf_names
from helm_megatron.conversion.settings import SettingsError
from helm_megatron.conversion.stored import StoredParameters
from helm_megatron.conversion.to_hf import export
from helm_megatron.conversion.to_megatron import convert_folder
from tests.hf import models

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.mark.parametrize("model", models.MODELS, ids=lambda model: model.name)
def test_round_trip_is_bit_identical(model, tmp_path):
    """The conversion ends with a comparison of the logits; here every parameter is compared."""
    source = models.source(model)
    export(source, tmp_path / "hf", verify=False)
    convert_folder(tmp_path / "hf", tmp_path / "megatron", divisible_by=models.PADDED)
    stored = StoredParameters(tmp_path / "megatron" / "release")
    names = [name for name in source.parameters.names() if hf_names.ignored(name) is None]
    assert sorted(names) == sorted(stored.names())
    for name in names:
        before, after = source.parameters.read(name), stored.read(name)
        if len(before) == models.PADDED:
            assert not after[models.VOCABULARY :].any()
            before, after = before[: models.VOCABULARY], after[: models.VOCABULARY]
        assert torch.equal(before, after), name


def test_bf16(tmp_path):
    source = models.source(models.cases.HELM_D, torch.bfloat16)
    export(source, tmp_path / "hf", verify=False)
    convert_folder(tmp_path / "hf", tmp_path / "megatron", divisible_by=models.PADDED)
    stored = StoredParameters(tmp_path / "megatron" / "release")
    assert {stored.dtype(name) for name in stored.names()} == {torch.bfloat16}


def test_a_model_without_flags(tmp_path):
    """Megatron's latent attention rounds the dimensions that YaRN's ramp is between."""
    export(models.source(models.HMLA_YARN), tmp_path / "hf", verify=False)
    path = tmp_path / "hf/config.json"
    fields = json.loads(path.read_text())
    fields["rope_parameters"]["truncate"] = False
    path.write_text(json.dumps(fields))
    with pytest.raises(SettingsError, match="Megatron has no model with rope_parameters") as info:
        convert_folder(tmp_path / "hf", tmp_path / "megatron")
    assert "\n" not in str(info.value) and not (tmp_path / "megatron").exists()
