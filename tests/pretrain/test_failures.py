"""Whatever ends a run, it says why, and the last whole checkpoint goes on as if nothing had been.

Two ranks share the experts; a rank that fails must not leave the other waiting.
"""

import os
import random
import shutil
import signal
from functools import partial

import pytest

from tests import forked
from tests.pretrain import faults
from tests.pretrain.runs import MICE

RUN = [
    *MICE, "--expert-model-parallel-size", 2, "--train-iters", 8, "--save-interval", 2,
    "--eval-iters", 0,
]  # fmt: skip
ASYNC = ["--async-save", "--use-persistent-ckpt-worker"]


@pytest.fixture(scope="module")
def whole(starter):
    """The losses of a run that nothing happens to."""
    folder = starter.folder / "whole"
    return starter.run(*RUN, "--save", folder, processes=2)


@pytest.fixture
def folder(starter, whole, tmp_path):
    """A folder with the checkpoint of iteration 2 only."""
    shutil.copytree(starter.folder / "whole" / "iter_0000002", tmp_path / "iter_0000002")
    tracker(tmp_path).write_text("2")
    return tmp_path


def tracker(folder):
    return folder / "latest_checkpointed_iteration.txt"


def there(folder):
    return ["--save", folder, "--load", folder]


def complaints(output):
    return [line for line in output.splitlines() if "pretrain_helm.py: error" in line]


def goes_on(starter, folder, whole, after):
    """The run in the folder goes on after an iteration as the whole one did."""
    assert tracker(folder).read_text() == str(after)
    losses = starter.run(*RUN, *there(folder), processes=2)
    assert losses == {i: whole[i] for i in range(after + 1, 9)}


def test_sigterm_saves_and_goes_on(starter, folder, whole):
    flags = [*RUN, *there(folder), "--exit-signal-handler"]
    losses = starter.run(*flags, processes=2, fault=partial(faults.sigterm, 3))
    assert list(losses) == [3]
    goes_on(starter, folder, whole, after=3)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 10))]
)
def test_killed_rank(starter, folder, whole, seed):
    """kill -9 of one rank at a moment of training or of saving ends the other; nothing is lost."""
    chance = random.Random(seed)
    running = starter.start(*RUN, *there(folder), processes=2, fault=faults.slow_disk)
    saving = folder / f"iter_000000{chance.choice([4, 6])}"
    running.wait_for(saving.exists)
    victim = chance.randrange(2)
    running.processes[victim].join(chance.uniform(0, 1.5))
    os.kill(running.processes[victim].pid, signal.SIGKILL)
    codes = running.join()
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] not in (0, -signal.SIGKILL)
    goes_on(starter, folder, whole, after=int(tracker(folder).read_text()))


def test_killed_while_saving_leaves_the_older_checkpoint(starter, folder, whole):
    running = starter.start(*RUN, *there(folder), processes=2, fault=faults.slow_disk)
    running.wait_for(lambda: any((folder / "iter_0000004").glob("*.distcp")))
    forked.kill(*running.processes)
    assert not (folder / "iter_0000004" / "metadata.json").exists()
    goes_on(starter, folder, whole, after=2)


@pytest.mark.parametrize(
    "flags", [[], pytest.param(ASYNC, marks=pytest.mark.slow)], ids=["sync", "async"]
)
def test_full_disk(starter, folder, whole, flags):
    codes, output = starter.refused(
        *RUN, *there(folder), *flags, processes=2, fault=faults.full_disk
    )
    assert codes == [1, 1]
    lines = complaints(output)
    assert any(f"no checkpoint could be saved to {folder}" in line for line in lines)
    assert any("whole ones: 2" in line for line in lines) and "Traceback" not in output
    if not flags:
        goes_on(starter, folder, whole, after=2)


@pytest.mark.parametrize(
    "flags", [[], pytest.param(["--rerun-mode", "validate_results"], marks=pytest.mark.slow)]
)
def test_nan_after_a_start_is_not_learned(starter, folder, whole, flags):
    codes, output = starter.refused(
        *RUN, *there(folder), *flags, processes=2, fault=partial(faults.nan_loss, 3)
    )
    assert codes == [1, 1] and "loss is NaN in iteration 3" in complaints(output)[0]
    if not flags:
        goes_on(starter, folder, whole, after=2)


def test_nan_later(starter, folder):
    codes, output = starter.refused(
        *RUN, *there(folder), processes=2, fault=partial(faults.nan_loss, 6)
    )
    assert codes == [1, 1] and "loss is NaN in iteration 6" in complaints(output)[0]
    assert tracker(folder).read_text() == "4"


def test_truncated_shard(starter, folder):
    shard = max(folder.glob("*/*.distcp"), key=lambda path: path.stat().st_size)
    os.truncate(shard, 1000)
    codes, output = starter.refused(*RUN, *there(folder), processes=2)
    assert codes == [1, 1]
    (line,) = complaints(output)
    assert f"{shard} is truncated: 1000 bytes" in line and "Traceback" not in output


@pytest.mark.parametrize("kept", [300, 100_000], ids=["arguments", "weights"])
def test_corrupt_shard(starter, folder, kept):
    """Right in size, not in content; the arguments lie before the first 100 kB end."""
    for shard in folder.glob("*/*.distcp"):
        shard.write_bytes(shard.read_bytes()[:kept] + bytes(shard.stat().st_size - kept))
    codes, output = starter.refused(*RUN, *there(folder), processes=2)
    assert codes == [1, 1]
    assert str(folder / "iter_0000002") in complaints(output)[0] and "Traceback" not in output
