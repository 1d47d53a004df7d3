"""Whatever ends a run, it says why, and the last whole checkpoint goes on as if nothing had been.

Two ranks share the experts; a rank that fails must not leave the other waiting.
"""

import os
import random
import shutil
import signal
import socket
import time
from functools import partial

import psutil
import pytest

from helm_megatron.megatron_patches import checkpoint_hashes
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_save_and_go_on(starter, folder, whole, number):
    flags = [*RUN, *there(folder), "--exit-signal-handler"]
    losses = starter.run(*flags, processes=2, fault=partial(faults.signals, 3, [number]))
    assert list(losses) == [3]
    goes_on(starter, folder, whole, after=3)


def test_a_second_sigint_ends_at_once(starter, folder):
    fault = partial(faults.signals, 3, [signal.SIGINT] * 2)
    running = starter.start(*RUN, *there(folder), "--exit-signal-handler", processes=2, fault=fault)
    codes = running.join()
    assert codes[1] == -signal.SIGINT and "SIGINT: ends after this step" in running.output
    assert tracker(folder).read_text() == "2"


def test_sigint_without_the_handler_is_one_line(starter, folder):
    codes, output = starter.refused(
        *RUN, *there(folder), processes=2, fault=partial(faults.signals, 3, [signal.SIGINT])
    )
    assert codes[1] == 130 and "Traceback" not in output


def test_a_hanging_rank_is_named(starter, folder):
    """Rank 0 waits for it in vain: since when, and where it runs."""
    flags = [*RUN, *there(folder), "--distributed-timeout-seconds-after-init", 3]
    running = starter.start(*flags, processes=2, fault=partial(faults.hang, 4))
    running.processes[0].join(120)
    assert running.processes[0].exitcode == 1 and "Traceback" not in running.output
    (line,) = complaints(running.output)
    hanging = running.processes[1].pid
    assert f"in iteration 4 from rank 1 (process {hanging} on {socket.gethostname()})" in line
    assert "no answer since" in line and "(3 s)" in line
    forked.kill(*running.processes)


@pytest.mark.parametrize(
    "flags", [[], pytest.param(ASYNC, marks=pytest.mark.slow)], ids=["sync", "async"]
)
def test_a_killed_rank_leaves_no_process(starter, folder, flags):
    """Each in a session of its own: what it has started would not be killed with it."""
    running = starter.start(*RUN, *there(folder), *flags, processes=2, fault=faults.slow_disk)
    running.wait_for(lambda: tracker(folder).read_text() == "4")
    family = [psutil.Process(p.pid).children(recursive=True) for p in running.processes]
    assert any(family) == bool(flags)  # a queue needs no process
    for process in running.processes:
        os.kill(process.pid, signal.SIGKILL)
    end = time.monotonic() + 60
    while left := [child for children in family for child in children if lives(child)]:
        assert time.monotonic() < end, left
        time.sleep(0.1)


def lives(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


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


def test_a_flipped_bit_is_found_by_hashes(starter, folder):
    """Where it changes numbers in silence; each rank looks at its share, and all of them end."""
    shard = max(folder.glob("*/*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    codes, output = starter.refused(*RUN, *there(folder), "--verify-integrity", processes=2)
    assert codes == [1, 1] and "Traceback" not in output
    assert all(f"{shard} is damaged" in line for line in complaints(output))


def test_hashes_of_whole_checkpoints_pass(starter, folder, whole):
    assert checkpoint_hashes.damaged(folder / "iter_0000002") is None
    losses = starter.run(*RUN, *there(folder), "--verify-integrity", processes=2)
    assert losses == {i: whole[i] for i in range(3, 9)}
    (folder / "iter_0000008" / "integrity.json").unlink()
    codes, output = starter.refused(*RUN, *there(folder), "--verify-integrity", processes=2)
    assert codes == [1, 1] and "without the flag the checkpoint loads unchecked" in output


def test_a_damaged_legacy_checkpoint_is_no_success(starter, tmp_path):
    """Megatron ends with exit code 0 without having trained."""
    flags = [*RUN[len(MICE) + 2 :], "--ckpt-format", "torch"]
    starter.run(*flags, "--save", tmp_path, "--exit-interval", 2)
    for file in tmp_path.glob("iter_*/*/*.pt"):
        os.truncate(file, 5000)
    codes, output = starter.refused(*flags, *there(tmp_path))
    assert codes == [1] and "Traceback" not in output
    assert "the checkpoint of --load was not loaded: " in complaints(output)[0]


def test_a_second_job_with_the_same_folder_is_refused(starter, folder):
    """Until the first has ended, however it did."""
    flags = [*MICE, *RUN[len(MICE) + 2 :], *there(folder)]
    first = starter.start(*flags, fault=faults.slow_disk)
    first.wait_for(lambda: tracker(folder).read_text() == "4")
    codes, output = starter.refused(*flags)
    pid = first.processes[0].pid
    assert codes == [1] and f"another job saves there (process {pid} on " in complaints(output)[0]
    os.kill(pid, signal.SIGKILL)
    first.join()
    last = int(tracker(folder).read_text())
    assert list(starter.run(*flags, "--exit-interval", 1)) == [last + 1]
