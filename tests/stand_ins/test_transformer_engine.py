"""Transformer Engine's Python: the local backend's model, in every layout, saved and loaded."""

import re

import pytest

from tests.pretrain.runs import MICE

TE = "--transformer-impl transformer_engine --attention-backend fused".split()
COMMON = """
    --train-iters 8 --save-interval 2 --eval-iters 0 --hidden-dropout 0 --attention-dropout 0
    --lr-warmup-iters 0 --exit-interval 4 --use-distributed-optimizer
    --dist-ckpt-optim-fully-reshardable --make-vocab-size-divisible-by 64
""".split()
TP2 = "--tensor-model-parallel-size 2 --sequence-parallel".split()
EP2 = "--expert-model-parallel-size 2".split()
ETP1 = [*TP2, "--expert-tensor-parallel-size", 1]
PP2 = "--pipeline-model-parallel-size 2".split()
LAYOUTS = {
    "dense, TP2": ([], TP2, 2),
    "experts, EP2": (MICE, EP2, 2),
    "experts, TP2, ETP2": (MICE, TP2, 2),
    "experts, TP2, ETP1": (MICE, ETP1, 2),
    "experts, PP2": (MICE, PP2, 2),
}
# As `verify` has them for fp32 without TF32.
LIMITS = {
    "loss": 1e-6,
    r"gradients of \d+ parameters": 2e-5,
    "loss and gradient norm of 3 steps": 1e-5,
}


QUICK = ["experts, EP2"]


@pytest.mark.parametrize(
    "layout",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in LAYOUTS],
)
def test_layouts_compute_the_model_of_one_process(te, layout):
    model, flags, processes = LAYOUTS[layout]
    flags = [*COMMON, *TE, *model, *flags]
    codes, ranks = te.start(*flags, program="verify", processes=processes)
    assert codes == [0] * processes, ranks.output[-4000:]
    for name, limit in LIMITS.items():
        [found] = re.findall(rf"ok +{name}: ([0-9.e+-]+) \(at most", ranks.output)
        assert float(found) <= limit, ranks.output[-2000:]


@pytest.mark.slow
def test_checkpoints_load_strictly_in_other_layouts_and_backends(te, starter, tmp_path):
    """TP2, then the local backend, go on as EP2 does, with gradients of every weight."""
    common = [*COMMON, *MICE]
    whole = te.run(*common, *TE, *EP2, "--save", tmp_path, processes=2)
    resumed = [*common, "--load", tmp_path, "--ckpt-step", 2]
    expected = {i: pytest.approx(whole[i], rel=1e-5) for i in (3, 4)}
    codes, ranks = te.start(*resumed, *TE, *TP2, "--save", tmp_path / "tp2", processes=2)
    assert codes == [0, 0] and ranks.losses == expected, ranks.output[-4000:]
    # Megatron falls back to what it finds if a strict load fails, and prints what it left.
    assert "load_return" not in ranks.output
    assert starter.run(*resumed, "--save", tmp_path / "local") == expected
    resumed = [*common, *TE, "--load", tmp_path / "local"]
    codes, ranks = te.start(*resumed, "--ckpt-step", 4, "--exit-interval", 6)
    assert codes == [0] and list(ranks.losses) == [5, 6], ranks.output[-4000:]
    assert "load_return" not in ranks.output
