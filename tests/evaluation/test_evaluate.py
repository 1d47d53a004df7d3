"""tools/evaluate.py: one command from a checkpoint to scores, and one line where it cannot."""

import json
from pathlib import Path

import pytest

from helm_megatron.evaluation import harness
from helm_megatron.evaluation.errors import EvaluationError
from tests import forked
from tests.evaluation.models import save_tokenizer
from tests.pretrain.forked import Starter
from tests.pretrain.runs import DENSE

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "examples" / "data" / "wordnet_glosses.jsonl.gz"


def tool(name, *flags):
    return forked.command(ROOT / "tools" / name, *flags)


def evaluate(load, output, *flags):
    return tool("evaluate.py", "--load", load, "--output-dir", output, *flags)


@pytest.fixture
def folder(tmp_path):
    """What passes for a Hugging Face folder until lm-eval loads it."""
    folder = tmp_path / "hf"
    save_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"vocab_size": 61}))
    return folder


def refused(done, *parts):
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert str(part) in line
    assert done.stdout == ""


def test_no_such_folder(tmp_path):
    refused(evaluate(tmp_path / "none", tmp_path / "out"), tmp_path / "none", "no such folder")


def test_tokenizer_of_another_model(folder, tmp_path):
    (folder / "config.json").write_text(json.dumps({"vocab_size": 30}))
    refused(evaluate(folder, tmp_path / "out"), folder, "another model's tokenizer")


def test_no_tokenizer(folder, tmp_path):
    (folder / "tokenizer_config.json").unlink()
    refused(evaluate(folder, tmp_path / "out"), folder, "has no tokenizer")


def test_broken_config(folder, tmp_path):
    (folder / "config.json").write_text("{")
    refused(evaluate(folder, tmp_path / "out"), folder / "config.json", "cannot be read")


def test_iteration_of_a_hugging_face_folder(folder, tmp_path):
    done = evaluate(folder, tmp_path / "out", "--ckpt-step", 5)
    refused(done, "--ckpt-step is for Megatron checkpoints")


def test_not_a_checkpoint(tmp_path):
    done = evaluate(tmp_path, tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: --load {tmp_path}: no checkpoint")


def test_scores_are_kept(folder, tmp_path):
    (tmp_path / "scores.json").write_text("{}")
    refused(evaluate(folder, tmp_path), tmp_path / "scores.json", "--overwrite")
    assert (tmp_path / "scores.json").read_text() == "{}"


def test_unknown_task(folder, tmp_path):
    done = evaluate(folder, tmp_path / "out", "--tasks", "offline,hypernimy")
    refused(done, "Tasks not found: hypernimy", "lm_eval ls tasks")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["lm_eval.log"]


def test_lm_eval_not_installed(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EvaluationError, match="not installed: pip install"):
        harness.run(folder, harness.Options(["helm_offline"]), tmp_path / "log")


def test_megatron_checkpoint(tmp_path):
    prefix = tmp_path / "wordnet"
    flags = ["--input", CORPUS, "--vocab-size", 512, "--output-prefix", prefix]
    trained = tool("train_tokenizer.py", *flags)
    assert trained.returncode == 0, trained.stderr
    tokenizer = f"--tokenizer-type SentencePieceTokenizer --tokenizer-model {prefix}.model".split()
    null = ["--tokenizer-type", "NullTokenizer", "--vocab-size", "127"]
    flags = [flag for flag in DENSE if flag not in null]
    checkpoints = tmp_path / "checkpoints"
    saved = ["--train-iters", 1, "--save-interval", 1, "--save", checkpoints]
    Starter(tmp_path).run(*tokenizer, *saved, base=flags)
    output = tmp_path / "out"
    done = evaluate(checkpoints, output, "--limit", 8, "--tasks", "wordnet_hypernymy")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (output / "scores.md").read_text()
    summary = json.loads((output / "scores.json").read_text())
    assert [score["questions"] for score in summary["scores"]] == [8, 8]
    names = {"scores.md", "scores.json", "scores.png", "lm_eval.json", "lm_eval.log"}
    assert {path.name for path in output.iterdir()} == names
