"""--tasks validation: the number that training logged, of both kinds of models."""

import gzip
import json
import re
from pathlib import Path

import pytest

from helm_megatron.evaluation import validation
from helm_megatron.evaluation.errors import EvaluationError
from tests.evaluation.test_evaluate import CORPUS, evaluate, refused, tool
from tests.pretrain.forked import Starter
from tests.pretrain.runs import DENSE

SPLIT = "80,20,0"


@pytest.fixture
def data(tmp_path) -> tuple[str, list[str]]:
    """A dataset of a few documents, and the flags of its tokenizer."""
    prefix, text = tmp_path / "wordnet", tmp_path / "text.jsonl"
    with gzip.open(CORPUS, "rt", encoding="utf-8") as lines:
        text.write_text("".join(line for line, _ in zip(lines, range(300), strict=False)))
    trained = tool(
        "train_tokenizer.py", "--input", text, "--vocab-size", 400, "--output-prefix", prefix
    )
    assert trained.returncode == 0, trained.stderr
    flags = f"--tokenizer-type SentencePieceTokenizer --tokenizer-model {prefix}.model".split()
    done = tool(
        "preprocess_data.py", "--input", text, "--output-prefix", prefix, "--append-eod", *flags
    )
    assert done.returncode == 0, done.stderr
    return f"{prefix}_text_document", flags


@pytest.mark.slow
def test_number_of_the_training(data, tmp_path):
    prefix, tokenizer = data
    mock = ["--mock-data", "--tokenizer-type", "NullTokenizer", "--vocab-size", "127"]
    flags = [flag for flag in DENSE if flag not in mock]
    checkpoints = tmp_path / "checkpoints"
    flags += ["--train-iters", "3", "--save-interval", "3", "--save", str(checkpoints)]
    flags += ["--data-path", prefix, "--split", SPLIT, "--full-validation", "--seed", "7"]
    ranks = Starter(tmp_path).start(*tokenizer, base=flags)
    assert ranks.join() == [0], ranks.output[-4000:]
    [logged] = re.findall(r"on validation set \| lm loss value: (\S+)", ranks.output)
    [bits] = re.findall(r"bits per byte at .* on validation set \| (\S+)", ranks.output)
    hf = tmp_path / "hf"
    made = tool(
        *("checkpoint/convert.py", "--from", "megatron", "--to", "hf", "--load", checkpoints),
        *("--save", hf),
    )
    assert made.returncode == 0, made.stderr
    for name, load in (("megatron", checkpoints), ("hf", hf)):
        out = tmp_path / f"out-{name}"
        asked = ["--data-path", prefix, "--split", SPLIT, "--seed", 7, "--batch-size", 5]
        done = evaluate(load, out, "--tasks", "validation", *asked)
        assert done.returncode == 0, done.stderr
        scores = json.loads((out / "scores.json").read_text())["scores"]
        assert scores["loss"] == pytest.approx(float(logged), rel=3e-6), name
        assert scores["bits per byte"] == pytest.approx(float(bits), rel=3e-6), name
        assert done.stdout == (out / "scores.md").read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--tasks validation", "needs --data-path and --split"),
        ("--tasks validation,offline --data-path x --split 1,1,0", "run the others apart"),
        ("--data-path x", "--data-path is for --tasks validation"),
        ("--tasks validation --data-path x --split 9,1,0 --limit 3", "--limit is not for"),
        ("--seed 3", "--seed is for --tasks validation"),
        ("--tasks validation --data-path x --split 9,1,0 --dtype float32", "--dtype is not for"),
        ("--tasks validation --data-path x --split 9,1,0 --batch-size auto", "a number for"),
    ],
)
def test_flags_that_do_not_go_together(flags, said, tmp_path):
    refused(evaluate(tmp_path, tmp_path / "out", *flags.split()), said)


def test_no_such_model(tmp_path):
    asked = ["--tasks", "validation", "--data-path", "x", "--split", "9,1,0"]
    refused(evaluate(tmp_path / "none", tmp_path / "out", *asked), "no such folder")


def test_data_that_is_not_there(tmp_path):
    from helm_megatron.evaluation import validation
    from helm_megatron.evaluation.errors import EvaluationError

    what = validation.Validation(["none"], "9,1,0", 1234, 2)
    program = Path(tmp_path, "program.py")
    program.write_text("import sys; sys.exit('pretrain_helm.py: error: --data-path none: no file')")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "PROGRAM", [str(program)])
        with pytest.raises(EvaluationError, match="^--data-path none: no file$"):
            validation.validate(tmp_path, what, tmp_path / "log", None, None)


def test_a_loss_that_is_no_number_is_no_score(tmp_path, monkeypatch):
    def says_nan(words, said):
        line = "loss at iteration 0 on validation set | lm loss value: NAN | lm loss PPL: NAN"
        print(line, file=said)

    monkeypatch.setattr(validation, "_run", says_nan)
    with pytest.raises(EvaluationError, match="the loss is NAN: its weights have NaN or Inf"):
        what = validation.Validation(["data"], SPLIT, 1, 1)
        validation.validate(tmp_path, what, tmp_path / "log", None, None)
