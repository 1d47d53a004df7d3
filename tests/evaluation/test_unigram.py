"""Scores of the unigram model: lm-eval's are those of a direct computation from the counts."""

import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from transformers import AutoTokenizer

from helm_megatron.data.errors import DataError
from helm_megatron.data.sidecar import fingerprint, write_sidecar
from helm_megatron.evaluation import harness
from helm_megatron.evaluation.errors import EvaluationError
from helm_megatron.evaluation.scores import read_scores
from helm_megatron.evaluation.unigram import Unigram
from helm_megatron.evaluation.unigram_counts import write_counts
from tests.evaluation.models import save_tokenizer
from tests.evaluation.test_tasks import read

TEXTS = ["dog: a kind of animal.", "oak: a kind of tree; it is tall", "eel: a kind of fish."] * 6
HELD_OUT = ["zzzz zzzz qqqq"] * 2
SPLIT = "90,10,0"  # 18 and 2 of 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def write_data(prefix, documents):
    builder = IndexedDatasetBuilder(f"{prefix}.bin", np.uint16)
    for tokens in documents:
        builder.add_document(tokens, [len(tokens)])
    builder.finalize(f"{prefix}.idx")


def describe(prefix, made_with):
    """Write the sidecar of a dataset that a tokenizer of this fingerprint made."""
    tokenizer = {"type": "HuggingFaceTokenizer", "model": "elsewhere", "vocab_size": 49}
    write_sidecar(
        prefix.with_name(f"{prefix.name}.json"),
        {
            "tokenizer": tokenizer | {"fingerprint": made_with},
            "counts": {"documents": 1, "sequences": 1, "tokens": 1},
            "files": {"bin": {}, "idx": {}},
        },
    )


@pytest.fixture
def data(tmp_path, tokenizer):
    prefix = tmp_path / "data"
    write_data(prefix, [tokenizer(text).input_ids for text in TEXTS + HELD_OUT])
    return prefix


@pytest.fixture
def counts(data, tmp_path):
    write_counts(str(data), SPLIT, tmp_path / "counts.json")
    return tmp_path / "counts.json"


def log_probability(text, tokenizer):
    """Of a text by the counts of TEXTS, add-one smoothed."""
    seen = Counter(token for text in TEXTS for token in tokenizer(text).input_ids)
    total = seen.total() + len(tokenizer)
    return sum(math.log((seen[token] + 1) / total) for token in tokenizer(text).input_ids)


def requests(*arguments):
    return [Instance("loglikelihood", {}, each, 0, ("task", 0, 1)) for each in arguments]


def test_probabilities_are_those_of_the_training_part(folder, counts, tokenizer):
    model = Unigram(str(folder), str(counts))
    assert np.exp(model.log_probabilities).sum() == pytest.approx(1)
    pairs = [
        ("dog: a kind of", " animal"),
        ("q", " zebra"),
        ("", "tree"),
        ("a b ", "c"),
        ("a", " "),
    ]
    found = model.loglikelihood(requests(*pairs), disable_tqdm=True)
    # lm-eval moves a context's last space to the continuation; the last is the commonest token.
    texts = [" animal", " zebra", "tree", " c", " "]
    assert [value for value, _ in found] == pytest.approx(
        [log_probability(text, tokenizer) for text in texts], abs=1e-9
    )
    assert [greedy for _, greedy in found] == [False, False, False, False, True]
    [rolled] = model.loglikelihood_rolling(requests(("an eel",)))
    assert rolled == pytest.approx(log_probability("an eel", tokenizer), abs=1e-9)


def test_scores_are_those_of_a_direct_computation(folder, counts, tokenizer, tmp_path):
    options = harness.Options(["helm_offline"], limit=40)
    outcome = harness.run(folder, options, tmp_path / "log", counts)
    scores = {(score.task, score.metric): score for score in read_scores(outcome.results)}
    questions = read(harness.TASKS / "wordnet_hypernymy.jsonl.gz")[:40]
    expected = {"acc": 0, "acc_norm": 0}
    for question in questions:
        choices = question["choices"]
        sums = [log_probability(f" {choice}", tokenizer) for choice in choices]
        means = [value / len(choice) for value, choice in zip(sums, choices, strict=True)]
        for metric, values in (("acc", sums), ("acc_norm", means)):
            expected[metric] += values.index(max(values)) == question["answer"]
    assert 0 < expected["acc"] < 40 and expected["acc"] != expected["acc_norm"]
    for metric, right in expected.items():
        assert scores["wordnet_hypernymy", metric].value == pytest.approx(right / 40)
    assert scores["mmlu_dev", "acc"].questions == 40


def test_another_tokenizers_data_is_refused(folder, data, tokenizer, tmp_path):
    path = tmp_path / "counts.json"
    describe(data, "of another")
    write_counts(str(data), SPLIT, path)
    with pytest.raises(EvaluationError, match="data was made with .* elsewhere, which is another"):
        Unigram(str(folder), str(path))
    describe(data, fingerprint(lambda text: tokenizer(text).input_ids))
    write_counts(str(data), SPLIT, path)
    Unigram(str(folder), str(path))


def test_tokens_beyond_the_vocabulary_are_refused(folder, tmp_path):
    write_data(tmp_path / "big", [[1, 2, 5000]] * 10)
    write_counts(str(tmp_path / "big"), SPLIT, tmp_path / "counts.json")
    with pytest.raises(EvaluationError, match="big has a token 5,000, and the model's tokenizer"):
        Unigram(str(folder), str(tmp_path / "counts.json"))


def test_no_training_part(data, tmp_path):
    with pytest.raises(DataError, match="leaves no tokens for 'train'"):
        write_counts(str(data), "0,1,0", tmp_path / "counts.json")


def test_answers_that_are_written_are_refused_in_one_line(folder, counts, tmp_path):
    task = tmp_path / "write.yaml"
    task.write_text(
        "task: write\ncustom_dataset: !function data.one\noutput_type: generate_until\n"
        "test_split: test\ndoc_to_text: '{{text}}'\ndoc_to_target: '{{text}}'\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    (tmp_path / "data.py").write_text(
        "from datasets import Dataset, DatasetDict\n"
        "def one(**_):\n    return DatasetDict(test=Dataset.from_list([{'text': 'a dog'}]))\n"
    )
    with pytest.raises(EvaluationError, match="^--unigram-data: write has the model write"):
        harness.run(folder, harness.Options([str(task)]), tmp_path / "log", counts)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--unigram-data", "none", "--split", "9,1,0"], "none.bin: no such file"),
        (["--unigram-data", "none"], "--unigram-data and --split come together"),
        (["--split", "9,1,0"], "--unigram-data and --split come together"),
    ],
)
def test_flags_are_refused_in_one_line(folder, tmp_path, flags, message):
    command = [sys.executable, "-m", "helm_megatron.cli", "evaluate", "--load", folder]
    command += ["--output-dir", tmp_path / "out", *flags]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ") and message in line
