"""Megatron's training loop on CPU and gloo: the same training in every layout and when resumed."""

import functools

import pytest
from gpt_run import EXACT, MOE, Run, train_all

LAYOUTS = {
    "dense": {
        "tp": "--tensor-model-parallel-size 2",
        "pp": "--pipeline-model-parallel-size 2",
        "vpp": "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2",
        "dp": "",
    },
    "distributed optimizer": {
        "tp": "--tensor-model-parallel-size 2",
        "dp": "",
        "dp overlapped": "--overlap-grad-reduce --overlap-param-gather",
    },
    "dp_reshardable": {"dp": ""},
    "experts": {
        "ep alltoall": "--expert-model-parallel-size 2 --moe-token-dispatcher-type alltoall",
        "ep allgather": "--expert-model-parallel-size 2 --moe-token-dispatcher-type allgather",
    },
    "experts distributed optimizer": {
        "ep": "--expert-model-parallel-size 2 --moe-token-dispatcher-type alltoall",
    },
}
DISTRIBUTED = "--use-distributed-optimizer"
RESHARDABLE = f"{DISTRIBUTED} --dist-ckpt-optim-fully-reshardable"
FAMILIES = {
    "dense": "",
    "distributed optimizer": RESHARDABLE,
    "dp_reshardable": DISTRIBUTED,
    "experts": " ".join(MOE),
    "experts distributed optimizer": f"{' '.join(MOE)} {RESHARDABLE}",
}
RECOMPUTE = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
# With dropout. Flags of a run, and more of the one that resumes it, which change no number.
RESUMED = {
    "tp": ("--tensor-model-parallel-size 2 --num-workers 2", RECOMPUTE),
    "pp": ("--pipeline-model-parallel-size 2 --bf16", ""),
    "async": (f"{DISTRIBUTED} --async-save", "--ckpt-fully-parallel-load"),
    "experts": (f"{FAMILIES['experts']} --expert-model-parallel-size 2 {DISTRIBUTED}", ""),
}
LOG = """--timing-log-level 2 --log-throughput --log-params-norm --log-num-zeros-in-grad
    --log-memory-interval 1 --log-device-memory-used --eval-iters 1 --eval-interval 1"""


def marks(family):
    """One family is quick enough to be trained every time."""
    return () if family == "dense" else pytest.mark.slow


CASES = [
    pytest.param(family, layout, marks=marks(family))
    for family, layouts in LAYOUTS.items()
    for layout in layouts
]


def runs_of(family, directory):
    """One process up to iteration 4; each layout for iteration 3, then one process for the next."""
    common = " ".join([*EXACT, FAMILIES[family]])

    def folder(name):
        return directory / f"{family} {name}".replace(" ", "_")

    yield Run(f"{family} whole", f"{common} --save {folder('whole')}")
    for layout, flags in LAYOUTS[family].items():
        at2 = f"{common} --load {folder('whole')} --ckpt-step 2"
        yield Run(f"{family} {layout}", f"{at2} {flags} --save {folder(layout)}", 2, end=3)
        yield Run(f"{family} {layout} back", f"{common} --load {folder(layout)}")


def resumed_runs(directory):
    """Four iterations with a checkpoint after two, and the last two from that checkpoint."""
    for name, (flags, more) in RESUMED.items():
        folder = directory / f"resumed_{name}"
        yield Run(f"to resume {name}", f"{flags} --save {folder}", 2)
        yield Run(f"resumed {name}", f"{flags} {more} --load {folder} --ckpt-step 2", 2)


def terminated_run(directory):
    flags = f"--exit-signal-handler {LOG} --save {directory / 'terminated'}"
    return Run("terminated", flags, 2, terminate_at=1)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("pretrain")


@pytest.fixture(scope="module")
def records(directory):
    """What the runs of a family recorded, done once."""
    return functools.cache(lambda family: train_all([*runs_of(family, directory)], directory))


@pytest.fixture(scope="module")
def resumed(directory):
    return train_all([*resumed_runs(directory)], directory)


@pytest.mark.parametrize("family", [pytest.param(f, marks=marks(f)) for f in FAMILIES])
def test_trains(records, family):
    loss = records(family)[f"{family} whole"]["loss"]
    assert len(loss) == 4
    assert loss[-1] < loss[0]


@pytest.mark.parametrize(("family", "layout"), CASES)
@pytest.mark.parametrize("what", ["loss", "grad_norm"])
def test_layout_continues_the_run_of_one_process(records, family, layout, what):
    whole = records(family)[f"{family} whole"][what]
    assert records(family)[f"{family} {layout}"][what] == pytest.approx(whole[2:3], rel=1e-5)


@pytest.mark.parametrize(("family", "layout"), CASES)
@pytest.mark.parametrize("what", ["loss", "grad_norm"])
def test_one_process_continues_the_run_of_a_layout(records, family, layout, what):
    whole = records(family)[f"{family} whole"][what]
    assert records(family)[f"{family} {layout} back"][what] == pytest.approx(whole[3:], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("what", ["loss", "grad_norm"])
def test_resuming_is_exact(resumed, name, what):
    assert resumed[f"resumed {name}"][what] == resumed[f"to resume {name}"][what][2:]


def test_sigterm_to_one_rank_saves_and_ends_the_run(directory):
    records = train_all([terminated_run(directory)], directory)
    assert len(records["terminated"]["loss"]) == 1
    saved = directory / "terminated" / "latest_checkpointed_iteration.txt"
    assert saved.read_text() == "1"
