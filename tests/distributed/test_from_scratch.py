"""One seed, one model: initial weights and training from scratch are the same in every layout.

The vocabulary has 29 tokens, and is padded to 30, 32 or 32 rows by tensor-parallel size.
"""

from dataclasses import replace

import pytest
from cases import (
    CP2,
    DP2_OPTIMIZER,
    EP2,
    HELM_D,
    HELM_D_TIED,
    HELM_D_TWIN,
    MICE_Q_LORA,
    ONE,
    PP2,
    PP2_EP2,
    TP2_EP2,
    TP2_PP2,
    TP2_SP,
    TP4,
)

from tests import forked

TOKENS = 29
DENSE = replace(HELM_D, name="dense", config={**HELM_D.config, "num_query_groups": 4})
DENSE = replace(DENSE, training_steps=40)
TWIN, TIED, MICE = (
    replace(model, training_steps=40) for model in (HELM_D_TWIN, HELM_D_TIED, MICE_Q_LORA)
)
QUICK = [(TWIN, TP2_SP), (TIED, PP2), (MICE, TP2_EP2)]
# Each layout with experts where it has a use for them.
SLOW = [
    *((MICE, layout) for layout in (TP2_SP, PP2, EP2, CP2, DP2_OPTIMIZER, PP2_EP2)),
    *((DENSE, layout) for layout in (TP4, TP2_PP2, CP2)),
]


@pytest.fixture(scope="module")
def one_process(pool, fresh_path):
    """A model's first checkpoint and 40 steps, in one process."""
    found = {}

    def run(model):
        if model.name not in found:
            directory = fresh_path()
            [(_, steps)] = pool.run(1, "from_scratch", model, ONE, TOKENS, directory, fresh_path())
            found[model.name] = directory, steps
        return found[model.name]

    return run


@pytest.mark.parametrize(
    ("model", "layout"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
    ids=lambda case: case.name,
)
def test_forty_steps_from_scratch_equal_one_process(pool, fresh_path, one_process, model, layout):
    directory, expected = one_process(model)
    assert len(expected) == 40 and expected[-1][0] < expected[0][0]
    results = pool.run(layout.world, "from_scratch", model, layout, TOKENS, directory, fresh_path())
    for differing, steps in results:
        assert differing == []
        losses, theirs = ([loss for loss, _ in each] for each in (steps, expected))
        assert losses == pytest.approx(theirs, rel=1e-5)
        # A steep way amplifies rounding: after a while only the losses agree so well.
        assert steps[:5] == [pytest.approx(step, rel=1e-5) for step in expected[:5]]


VERIFY = """
    -m helm_megatron.verify --from-scratch --num-layers 2 --hidden-size 32 --ffn-hidden-size 48
    --num-attention-heads 2 --seq-length 16 --max-position-embeddings 16 --swiglu
    --normalization RMSNorm --disable-bias-linear --position-embedding-type rope
    --untie-embeddings-and-output-weights --vocab-size 61 --make-vocab-size-divisible-by 4
    --tokenizer-type NullTokenizer --micro-batch-size 1 --global-batch-size 4 --lr 1e-3
    --train-iters 1 --tensor-model-parallel-size 2
""".split()


def test_verify_from_scratch_compares_initial_values():
    done = forked.commands(*VERIFY, envs=forked.ranks(2))
    output = "".join(each.stdout + each.stderr for each in done)
    assert [each.returncode for each in done] == [0, 0], output[-4000:]
    assert "ok        initial values of " in output and " of 40 steps" in output
