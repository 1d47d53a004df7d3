"""Stock lm-eval on an exported model, where there is no helm_megatron."""

import json
import os
import re
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from helm_megatron.evaluation import harness
from helm_megatron.evaluation.presets import TASKS
from helm_megatron.evaluation.scores import read_scores
from tests.evaluation.models import exported

pytestmark = pytest.mark.usefixtures("one_process")

QUESTIONS = 24


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A folder to work in, and a virtual environment with neither helm_megatron nor Megatron.

    It has links to the other packages that are installed here.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "venv", symlinks=True)
    [site] = (folder / "venv").glob("lib/python*/site-packages")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not re.search("helm|megatron|editable", entry.name):
            (site / entry.name).symlink_to(entry)
    environment = os.environ | harness.OFFLINE | {"HF_HOME": str(folder / "cache")}
    environment.pop("PYTHONPATH", None)
    python = folder / "venv/bin/python"
    return SimpleNamespace(folder=folder, python=python, environment=environment)


@pytest.fixture(scope="module")
def answered(clean, one_process):
    """Megatron's model, its export, and lm-eval's outcome on it."""
    hf, output, log = clean.folder / "hf", clean.folder / "output", clean.folder / "log"
    source = exported(hf)
    options = harness.Options(
        ["helm_offline"],
        dtype="float32",
        limit=QUESTIONS,
        device="cpu",
        log_samples=True,
        trust_remote_code=True,
    )
    words = harness.command(hf, options, output)
    tasks = shutil.copytree(TASKS, clean.folder / "tasks")
    words[words.index("--include_path") + 1] = str(tasks)
    with log.open("w") as lines:
        done = subprocess.run(
            [clean.python, "-m", *words],
            cwd=clean.folder,
            env=clean.environment,
            stdout=lines,
            stderr=subprocess.STDOUT,
        )
    assert done.returncode == 0, log.read_text()[-4000:]
    return SimpleNamespace(source=source, hf=hf, outcome=harness.collect(output, log))


def test_the_clean_environment_is_clean(clean):
    for name in ("helm_megatron", "megatron"):
        command = [clean.python, "-c", f"import {name}"]
        done = subprocess.run(
            command, cwd=clean.folder, env=clean.environment, capture_output=True, text=True
        )
        assert f"No module named '{name}'" in done.stderr


def loglikelihoods(answered, pairs):
    """Log-probability of every continuation after its context, by Megatron's model in process.

    Continuations that do not fit into the context give None.
    """
    tokenizer = AutoTokenizer.from_pretrained(answered.hf)
    rows = [(tokenizer(a).input_ids, tokenizer(a + b).input_ids) for a, b in pairs]
    length = answered.source.config.max_position_embeddings
    # Padding on the right is not seen by what stands left of it.
    tokens = torch.tensor([(whole + [0] * length)[:length] for _, whole in rows])
    logprobs = answered.source.logits(tokens).double().log_softmax(-1)
    sums = []
    for row, (context, whole) in enumerate(rows):
        places = torch.arange(len(context) - 1, len(whole) - 1)
        fits = len(whole) <= length
        chosen = torch.tensor(whole[len(context) :])
        sums.append(logprobs[row, places, chosen].sum().item() if fits else None)
    return sums


def test_score_in_process_is_lm_evals(answered):
    """Log-likelihoods by Megatron's own model, and the scores, are lm-eval's of the export."""
    samples = [
        json.loads(line) for line in answered.outcome.samples["wordnet_hypernymy"].splitlines()
    ]
    assert len(samples) == QUESTIONS
    correct = {"acc": [], "acc_norm": []}
    for sample in samples:
        doc = sample["doc"]
        context = f"{doc['term']}: a kind of"
        mine = loglikelihoods(answered, [(context, f" {choice}") for choice in doc["choices"]])
        theirs = [float(response[0][0]) for response in sample["resps"]]
        if None in mine:
            continue
        assert mine == pytest.approx(theirs, rel=1e-4)
        by_length = [
            value / len(choice) for value, choice in zip(mine, doc["choices"], strict=True)
        ]
        for metric, values in (("acc", mine), ("acc_norm", by_length)):
            best = max(range(len(values)), key=values.__getitem__)
            correct[metric].append((best == doc["answer"], sample[metric]))
    for metric, pairs in correct.items():
        assert len(pairs) >= QUESTIONS // 2, "too few questions fit into the model's context"
        assert [float(mine) for mine, _ in pairs] == [theirs for _, theirs in pairs], metric
        assert 0 < sum(mine for mine, _ in pairs) < len(pairs), "the scores show nothing"


def test_scores(answered):
    scores = read_scores(answered.outcome.results)
    assert [(score.task, score.metric) for score in scores] == [
        ("wordnet_hypernymy", "acc"),
        ("wordnet_hypernymy", "acc_norm"),
        ("mmlu_dev", "acc"),
    ]
    assert {(score.questions, score.shots, score.chance) for score in scores} == {
        (QUESTIONS, 0, 0.25)
    }
    assert answered.outcome.truncated  # MMLU's questions are longer than this model's context.
    assert len(answered.outcome.samples["mmlu_dev"].splitlines()) == QUESTIONS
