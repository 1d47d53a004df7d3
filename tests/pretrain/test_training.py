"""`pretrain_helm.py` trains what its flags say, and logs the geometry."""

import re

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helm_megatron.analysis import embedding
from tests.pretrain.runs import MICE, losses, run


def test_bf16_mixture_logs_its_geometry(starter, tmp_path):
    """--bf16 trains on the CPU; loads, curvatures, times and temperatures reach TensorBoard."""
    flags = ["--bf16", "--train-iters", 6, "--log-interval", 2, "--tensorboard-dir", tmp_path]
    ranks = starter.start(*MICE, *flags, "--expert-model-parallel-size", 2, processes=2)
    assert ranks.join() == [0, 0], ranks.output[-4000:]
    trained, output = ranks.losses, ranks.output
    assert trained[6] < trained[1]
    assert len(re.findall(r"helm at iteration \d+: .*curvature", output)) == 3
    events = EventAccumulator(str(tmp_path)).Reload()
    curvatures = [events.Scalars(f"curvature/layer-2-expert-{e}")[0].value for e in range(4)]
    assert curvatures == pytest.approx([0.3, 0.867, 1.433, 2.0], rel=0.05)
    layers = ("max-time/layer-1", "attention-temperature/layer-2", "expert-load-max/layer-2")
    for name in (*layers, *embedding.NAMES):
        assert [event.step for event in events.Scalars(name)] == [2, 4, 6]
    low, high = (events.Scalars(f"expert-load-{m}/layer-2")[0].value for m in ("min", "max"))
    assert 0 <= low <= 0.25 <= high <= 1
    loads = [events.Scalars(f"expert-load/layer-2-expert-{e}")[0].value for e in range(4)]
    assert (min(loads), max(loads), sum(loads)) == pytest.approx((low, high, 1))
    median, largest, delta = (events.Scalars(name)[0].value for name in embedding.NAMES)
    assert 0 < median < largest and 0 < delta < 1


def test_euclidean_twin_differs_by_one_word():
    trained = losses(run(*MICE, "--train-iters", 4, "--geometry", "euclidean"))
    assert trained[4] < trained[1]


def test_proportional_bias_moves_the_choice_of_experts(starter):
    """With weights that stand still, only the step of the selection bias can change the loss."""

    def trained(rate):
        flags = "--train-iters 3 --lr 1e-12 --min-lr 0 --hidden-dropout 0 --attention-dropout 0"
        flags += " --mice-bias-update proportional --mice-routing reference"
        ranks = starter.start(*MICE, *flags.split(), "--moe-router-bias-update-rate", rate)
        assert ranks.join() == [0], ranks.output[-4000:]
        return ranks.losses

    still, moved = trained(0.0), trained(1.0)
    assert moved[1] == still[1]
    assert moved[2] != still[2]
