"""Every benchmark runs at a tiny size, prints a table and writes JSON; nothing is timed here."""

import json
import re
from pathlib import Path

import pytest

from tests import forked

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = "--seq-length 32 --micro-batch-size 1 --num-layers 2 --vocab-size 256 --dtype fp32"
MICE = "--moe-layer-freq [0,1]"
RUN = "--steps 1 --warm-up 1"


@pytest.fixture
def run(tmp_path):
    """Runs a benchmark with flags; returns what it printed and what it wrote."""

    def run(script, flags):
        output = tmp_path / "runs" / "result.json"
        done = forked.command(BENCHMARKS / script, *flags.split(), "--output", output)
        assert done.returncode == 0, done.stderr
        written = json.loads(output.read_text())
        assert written["commit"] and written["command"].startswith("python ")
        return done.stdout, written["results"]

    return run


def table(printed):
    """The rows of the Markdown table by its first column, as dictionaries."""
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines() if line[:1] == "|"]
    head, _, *rows = lines
    return [dict(zip(head, (cell.strip() for cell in row), strict=True)) for row in rows]


def test_train_step(run):
    printed, results = run("train_step.py", f"--shape mice-120m {MICE} {TINY} {RUN}")
    helm, twin = results["HELM"], results["Euclidean"]
    # A step holds parameters, gradients and Adam's two moments, and the activations.
    for model in (helm, twin):
        assert model["bytes"] > 16 * model["parameters"]
        assert model["tokens"] == 32
    assert helm["parameters"] > twin["parameters"] and helm["flops"] > twin["flops"]
    assert [row["model"] for row in table(printed)] == ["HELM", "Euclidean", "ratio"]


def test_utilization_is_of_the_given_peak(run):
    printed, results = run("train_step.py", f"{TINY} {RUN} --peak-tflops 0.5")
    model = results["HELM"]
    share = model["flops"] / model["step"]["wall"] / 0.5e12
    assert table(printed)[0]["MFU"] == f"{100 * share:.1f}%"


def test_leaves(run):
    printed, results = run("leaves.py", f"--shape mice-120m {MICE} {TINY} {RUN}")
    names = [row["leaf"] for row in table(printed)]
    expected = {"embedding", "attention core", "residual and norm", "MLP", "router", "MoE layer"}
    assert expected | {"head"} <= set(names)
    assert {row["model"] for row in results} == {"HELM", "Euclidean"}


def test_scaling_with_the_sequence(run):
    printed, results = run("scaling.py", f"sequence --lengths 16 32 {RUN} --vocab-size 256")
    assert [row["sequence"] for row in table(printed)] == ["16", "32"]
    assert [result["HELM"]["tokens"] for result in results] == [16, 32]


@pytest.mark.slow
def test_bytes_between_processes(run):
    layout, flags = "PP EP", f"{TINY} {MICE}"
    _, results = run("scaling.py", f"bytes --layouts {layout} {flags}")
    pipeline, experts = results
    # Of two micro-batches a stage sends on the activations, and the next one their gradients: no
    # times among them.
    sent = {name: counted["send, pp"] for name, counted in pipeline["bytes"].items()}
    assert sent == dict.fromkeys(["HELM", "Euclidean"], 2 * 2 * 32 * 384 * 4)
    assert all("all-to-all, ep" in counted for counted in experts["bytes"].values())


def test_decode(run):
    flags = "--hidden-size 32 --heads 2 --layers 1 --kv-lora-rank 8 --prompts 4 8 --repeats 1"
    printed, results = run("decode.py", flags)
    assert len(table(printed)) == len(results) == 6
    for row in results:
        assert int(row["measured"]) == pytest.approx(row["bytes/token computed"], rel=0.01)


def test_embedding_optimizer(run):
    _, results = run("embedding_optimizer.py", "--rows 64 --width 8 --steps 2")
    assert [row["batch"] for row in results][:2] == ["every token", "same hundredth"]


def test_checkpoint_hashes(run):
    _, results = run("checkpoint_hashes.py", "--megabytes 4 --repeats 1")
    assert [row["of"] for row in results] == ["save", "save", "load", "load", "load"]


def test_stability(run, tmp_path):
    log = tmp_path / "log"
    small = "--num-layers 2 --moe-layer-freq [0,1] --vocab-size 255"
    _, results = run("stability.py", f"--steps 40 --parts 2 --log {log} --threads 1 {small}")
    assert [row["steps to"] for row in results] == ["20", "40"]
    losses = [float(loss) for loss in re.findall(r"lm loss: (\S+)", log.read_text())]
    assert len(losses) == 5  # of step 1, and every tenth
    assert float(results[0]["largest loss"]) == pytest.approx(losses[0], abs=1e-3)
    assert float(results[1]["last loss"]) == pytest.approx(losses[-1], abs=1e-3)
    times = [float(time) for time in re.findall(r"max-time \S+\.\.(\S+)", log.read_text())]
    assert float(results[1]["largest time"]) == pytest.approx(max(times[2:]), abs=0.01)


def test_stability_of_a_training_that_fails(tmp_path):
    flags = ["--steps", 40, "--parts", 2, "--log", tmp_path / "log", "--num-layers", -1]
    done = forked.command(BENCHMARKS / "stability.py", *flags)
    assert done.returncode == 1 and "--num-layers" in done.stderr.splitlines()[-1]


def test_flags_that_make_no_model():
    done = forked.command(BENCHMARKS / "train_step.py", "--normalization", "LayerNorm")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
