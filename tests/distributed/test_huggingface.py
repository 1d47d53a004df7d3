"""Exports of checkpoints that other layouts saved: Megatron's logits, whatever the layout."""

import dataclasses
from pathlib import Path

import cases
import pytest
import torch
from cases import EP2, PP2, TP2, TP2_PP2, TP2_SP

from helm_megatron.conversion import in_megatron, settings
from helm_megatron.conversion.source_model import SourceModel
from helm_megatron.conversion.stored import StoredParameters
from helm_megatron.conversion.text import Text
from helm_megatron.conversion.to_hf import export
from tests.hf.models import MICE_LORENTZ, model_config

MICE_REFERENCE_LORENTZ = dataclasses.replace(
    cases.MICE_REFERENCE,
    name="mice-reference-lorentz-embedding",
    helm={**cases.MICE_REFERENCE.helm, "embedding": "lorentz", "embedding_curvature": 0.7},
)
CASES = [
    *((cases.HELM_D, layout) for layout in (TP2, PP2, TP2_PP2)),
    *((cases.HELM_D_MHA, layout) for layout in (TP2, PP2, TP2_PP2)),
    *((cases.MICE_Q_LORA, layout) for layout in (TP2_SP, PP2, EP2, TP2_PP2)),
    *((MICE_LORENTZ, layout) for layout in (EP2, TP2_PP2)),
    *((cases.MICE_REFERENCE, layout) for layout in (TP2_SP, PP2, EP2, TP2_PP2)),
    *((MICE_REFERENCE_LORENTZ, layout) for layout in (EP2, TP2_PP2)),
]


def export_of(folder: Path, model: cases.Model) -> SourceModel:
    config = dataclasses.replace(model_config(model), vocab_size=cases.VOCABULARY)
    load = in_megatron.from_checkpoint(folder)
    return SourceModel(
        str(folder),
        StoredParameters(folder),
        settings.hf_config(config, cases.VOCABULARY),
        Text(),
        lambda tokens: in_megatron.logits(config, load, tokens, cases.VOCABULARY),
    )


# Each kind of model once, and each kind of parallelism; all of them take minutes.
QUICK = [
    *((cases.HELM_D, TP2_PP2), (cases.HELM_D_MHA, TP2), (cases.MICE_Q_LORA, EP2)),
    *((cases.MICE_REFERENCE, TP2_SP), (MICE_LORENTZ, TP2_PP2)),
]


@pytest.mark.parametrize(
    ("model", "layout"),
    [pytest.param(*c, marks=() if c in QUICK else pytest.mark.slow) for c in CASES],
    ids=lambda case: case.name if hasattr(case, "name") else None,
)
def test_any_layout(model, layout, pool, weights, fresh_path, tmp_path, one_process):
    """`export` compares the logits; the tensors are those of the one-process checkpoint."""
    again = fresh_path()
    pool.run(layout.world, "save_again", model, layout, weights(model), again)
    export(export_of(again, model), tmp_path / "hf")
    stored, whole = StoredParameters(again), StoredParameters(weights(model) / "weights")
    for name in stored.names():
        assert torch.equal(stored.read(name), whole.read(name)), name
