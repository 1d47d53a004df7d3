"""Training on two virtual nodes: from text to scores, through a requeue and a node failure."""

import gzip
import re
import subprocess
import sys

import pytest

from tests.pretrain.runs import losses
from tests.slurm.conftest import ROOT

MOCK = "--mock-data --tokenizer-type NullTokenizer --vocab-size 127".split()
CORPUS = ROOT / "examples" / "data" / "wordnet_glosses.jsonl.gz"
ITERATIONS = 120


@pytest.fixture
def text(tmp_path):
    """Three files of text, a list of them, and the flags of a tokenizer."""
    with gzip.open(CORPUS, "rt", encoding="utf-8") as file:
        lines = [next(file) for _ in range(900)]
    files = [tmp_path / f"text{i}.jsonl" for i in range(3)]
    for i, path in enumerate(files):
        path.write_text("".join(lines[300 * i : 300 * (i + 1)]), encoding="utf-8")
    inputs = tmp_path / "inputs.txt"
    inputs.write_text("".join(f"{path}\n" for path in files))
    train = [sys.executable, ROOT / "tools" / "train_tokenizer.py", "--vocab-size", "500"]
    files = ["--input", files[0], "--output-prefix", tmp_path / "tokenizer"]
    subprocess.run([*train, *files], check=True, capture_output=True, timeout=300)
    model = tmp_path / "tokenizer.model"
    return inputs, ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", model]


@pytest.mark.slow
def test_from_text_to_scores_through_a_requeue_and_a_node_failure(cluster, jobs, text):
    inputs, tokenizer = text
    training = [*tokenizer, "--split", "90,10,0", "--train-iters", ITERATIONS]
    data = jobs.folder / "data" / "glosses"
    data.parent.mkdir()
    chain = ["--inputs", inputs, "--data-prefix", data, "--array-tasks", 2]
    chain += ["--pretrain-sbatch", "--nodes=2", "--evaluate", "--tasks offline --limit 2"]
    out = jobs.run(
        *["slurm/submit.sh", "examples/tiny_mice.sh", *chain, "--"],
        *[*training, "--save-interval", 25],
    )
    _, _, train, evaluate = re.findall(r"job (\d+)", out)

    jobs.wait_for(train, 0, "iteration       10/")
    cluster.run("scancel", "--batch", "--signal=USR1", train)  # as before the time limit
    jobs.wait_for(train, 1, "iteration       60/")
    cluster.run("scontrol", "update", f"nodename={cluster.nodes[1]}", "state=down", "reason=test")
    assert cluster.wait(train) == "COMPLETED", jobs.output(train) + jobs.log(train, 2)
    assert cluster.job(train, "Restarts") == "2"

    flags = [*training, "--data-path", f"{data}_text_document"]
    whole = jobs.pretrain(*flags, env={"CHECKPOINT_DIR": str(jobs.folder / "whole")})
    assert cluster.wait(whole) == "COMPLETED", jobs.output(whole)
    expected = losses(jobs.log(whole, 0))
    assert len(expected) == ITERATIONS
    assert expected[ITERATIONS] < expected[1] - 0.5
    for attempt in range(3):
        seen = losses(jobs.log(train, attempt))
        assert seen == {i: expected[i] for i in seen}
    assert ITERATIONS in seen
    assert min(seen) > min(losses(jobs.log(train, 1))) > 10
    assert "[rank1]" in jobs.log(train, 0)

    assert cluster.wait(evaluate) == "COMPLETED", jobs.output(evaluate)
    assert (jobs.folder / "evaluation" / "scores.json").is_file()


@pytest.mark.slow
def test_a_time_limit_does_not_end_training(cluster, jobs):
    """SLURM sends the signal itself, 30 to 60 s before the limit, which is in whole minutes."""
    flags = [*MOCK, "--train-iters", 100000, "--save-interval", 100000]
    job = jobs.pretrain(*flags, sbatch=["--signal=B:USR1@30"])
    jobs.wait_for(job, 0, "iteration        5/")
    minutes = int(cluster.job(job, "RunTime").split(":")[1])
    cluster.run("scontrol", "update", f"jobid={job}", f"timelimit={minutes + 2}")
    assert "asked to stop" not in jobs.output(job)
    cluster.wait_until(lambda: cluster.job(job, "Restarts") == "1", 180, "requeue")
    cluster.run("scontrol", "update", f"jobid={job}", "timelimit=20")
    assert "asked to stop" in jobs.output(job)
    saved = int((jobs.folder / "checkpoints" / "latest_checkpointed_iteration.txt").read_text())
    assert saved == max(losses(jobs.log(job, 0))), "not saved when asked to stop"
    jobs.wait_for(job, 1, f"iteration {saved + 1:8}/")
    cluster.run("scancel", job)
    assert cluster.wait(job) == "CANCELLED"


def test_scancel_leaves_no_process_and_no_job(cluster, jobs):
    job = jobs.pretrain(*MOCK, "--train-iters", 100000)
    jobs.wait_for(job, 0, "iteration        5/")
    assert cluster.processes("pretrain_helm.py")
    cluster.run("scancel", job)
    assert cluster.wait(job) == "CANCELLED"
    cluster.wait_until(cluster.all_idle, 60, "idle nodes")
    assert cluster.processes("pretrain_helm.py") == []
    assert cluster.processes("srun") == []
    assert cluster.job(job) == "CANCELLED"


def test_what_the_program_explains_is_not_tried_again(cluster, jobs):
    job = jobs.pretrain(*MOCK, "--geometry", "flat")
    assert cluster.wait(job) == "FAILED"
    assert cluster.job(job, "Restarts") == "0"
    assert "invalid choice: 'flat'" in jobs.output(job)
