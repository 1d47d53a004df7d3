"""`helm-megatron plan` as a user runs it."""

import json

import pytest

from helm_megatron import cli
from helm_megatron.plan.cluster import GIGA, Cluster
from tests import forked

RECIPE = """
MODEL_ARGS=(
    --geometry "${GEOMETRY:-lorentz}"
    --num-layers 4 --hidden-size 64 --ffn-hidden-size 128 --num-attention-heads 4
    --seq-length 64 --max-position-embeddings 64 --vocab-size 256
    --swiglu --normalization RMSNorm --disable-bias-linear --position-embedding-type rope
    --untie-embeddings-and-output-weights --micro-batch-size 1 --global-batch-size 16
    --lr 1e-3 --train-iters 1 --bf16 --use-distributed-optimizer --overlap-grad-reduce
)
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("a recipe; echo") / "tiny.sh"
    path.write_text(RECIPE)
    return path


def plan(recipe, *options):
    return forked.command("-m", "helm_megatron.cli", "plan", recipe, *options)


def test_layouts_best_first(recipe):
    done = plan(recipe, "--gpus", "8", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    steps = [entry["seconds"]["step"] for entry in found["fitting"]]
    assert steps == pytest.approx(sorted(steps), rel=0.01)
    assert found["recipe"]["layout"]["tensor"] == 1
    assert {entry["layout"]["pipeline"] for entry in found["fitting"]} == {1, 2, 4}
    assert found["excluded"] == [
        "tensor parallel 8: heads, query groups or widths cannot be divided",
        "pipeline parallel 8: 4 layers cannot be divided evenly",
    ]


@pytest.mark.slow
def test_says_what_does_not_fit(recipe):
    done = plan(recipe, "--gpus", "16", "--gpu-memory", "0.0001")
    assert done.returncode == 1
    assert "0 layouts fit" in done.stdout
    assert "layouts need more than 0.0 GB" in done.stdout


@pytest.mark.parametrize(
    ("content", "options", "reason"),
    [
        (None, "--gpus 8", "there is no such recipe"),
        ("exit 3", "--gpus 8", "it failed"),
        ("true", "--gpus 8", "MODEL_ARGS"),
        ("MODEL_ARGS=(--swiglu)", "--gpus 0", "--gpus 0: must be positive"),
        ("MODEL_ARGS=(--swiglu)", "--gpus 8 --flops -1", "--flops -1.0: must be positive"),
        ("MODEL_ARGS=(--swiglu)", "--gpus 8 --memory-margin 1", "--memory-margin 1.0"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, content, options, reason):
    path = tmp_path / "recipe.sh"
    if content is not None:
        path.write_text(content)
    assert cli.main(["plan", str(path), *options.split()]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1


def test_time_of_collectives():
    cluster = Cluster(gpus=16, gpus_per_node=8, intra_node_bandwidth=100, inter_node_bandwidth=10)
    size = int(100 * GIGA)
    assert cluster.seconds("all-gather", size, 4, 8) == pytest.approx(0.75)
    assert cluster.seconds("all-reduce", size, 4, 8) == pytest.approx(1.5)
    assert cluster.seconds("all-gather", size, 4, 16) == pytest.approx(7.5)
    assert cluster.seconds("send", size, 2, 16) == pytest.approx(10)
    assert cluster.seconds("all-reduce", size, 1, 1) == 0
