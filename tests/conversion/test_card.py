"""The model card is filled in from the run."""

import argparse
import json

import pytest
from torch.utils.tensorboard import SummaryWriter

from helm_megatron.conversion.card import set_evaluation, write_card
from helm_megatron.hf.configuration_helm import HelmConfig


@pytest.fixture
def logs(tmp_path):
    with SummaryWriter(tmp_path / "logs") as writer:
        for step in range(1, 41):
            writer.add_scalar("lm loss validation", 8 - step / 10, step)
    return tmp_path / "logs"


def test_card(logs, tmp_path):
    results = {"results": {"wordnet": {"acc,none": 0.4321, "acc_stderr,none": 0.01, "alias": "w"}}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    run = argparse.Namespace(lr=3e-4, global_batch_size=64)
    latent = dict(kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8)
    config = HelmConfig(n_routed_experts=4, moe_intermediate_size=8, **latent)
    source = "runs/quick/iter_40"
    write_card(tmp_path, config, source, 1234567, run, logs, tmp_path / "results.json")
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "HELM-MiCE" in card and "| parameters | `1,234,567` |" in card
    assert "| lr | 0.0003 |" in card and "| wordnet | acc | 0.4321 |" in card
    assert "| 40 | 4.0000 |" in card and "| 36 | 4.4000 |" in card and "stderr" not in card
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_evaluation_of_a_finished_card(tmp_path):
    write_card(tmp_path, HelmConfig(), "x", 1, None, None, None)
    plain = (tmp_path / "README.md").read_text()
    for accuracy in (0.25, 0.75):
        results = {"results": {"wordnet": {"acc,none": accuracy}}}
        (tmp_path / "results.json").write_text(json.dumps(results))
        set_evaluation(tmp_path, tmp_path / "results.json")
    card = (tmp_path / "README.md").read_text()
    assert "| wordnet | acc | 0.7500 |" in card and "0.2500" not in card
    start, end = card.index("\n## Evaluation"), card.index("\n## Limits")
    assert card[:start] + card[end:] == plain
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ValueError, match="not a model card"):
        set_evaluation(tmp_path, tmp_path / "results.json")
    assert (tmp_path / "README.md").read_text() == "mine"


def test_card_without_a_run(tmp_path):
    write_card(tmp_path, HelmConfig(geometry="euclidean"), "x", 1, None, tmp_path / "none", None)
    card = (tmp_path / "README.md").read_text()
    assert "Euclidean twin" in card and "## Loss" not in card and "## Evaluation" not in card


def test_bad_evaluation(tmp_path):
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(ValueError, match="not a results file of lm-eval"):
        write_card(tmp_path, HelmConfig(), "x", 1, None, None, tmp_path / "bad.json")
