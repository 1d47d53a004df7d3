import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helm_megatron.data.errors import DataError
from helm_megatron.data.output import own_folder, staged


def test_targets_appear_only_when_the_block_succeeds(tmp_path):
    targets = [tmp_path / "new" / "a", tmp_path / "new" / "b"]
    with staged(targets, overwrite=False) as paths:
        for path in paths:
            path.write_text(path.name)
        assert not any(target.exists() for target in targets)
    assert [target.read_text() for target in targets] == ["a", "b"]
    assert set(targets[0].parent.iterdir()) == set(targets)


def test_failure_keeps_what_was_there_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "a"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), staged([target], overwrite=True) as [path]:
        path.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_existing_target_needs_overwrite(tmp_path):
    target = tmp_path / "a"
    target.write_text("old")
    with pytest.raises(DataError, match="--overwrite"), staged([target], overwrite=False):
        pytest.fail("not refused")
    with staged([target], overwrite=True) as [path]:
        path.write_text("new")
    assert target.read_text() == "new"


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(DataError, match="cannot be written"),
        staged([tmp_path / "file" / "a"], overwrite=False),
    ):
        pytest.fail("not refused")


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, small_disk):
    with (
        pytest.raises(DataError, match=r"cannot be written: File too large; free some space$"),
        staged([tmp_path / "a"], overwrite=False) as [path],
        small_disk(1000),
    ):
        path.write_bytes(bytes(10_000))
    assert not list(tmp_path.iterdir())


KILLED = """
import os, sys, time
from pathlib import Path
from helm_megatron.data.output import own_folder
with own_folder(Path(sys.argv[1]), ".hf-") as folder:
    (folder / "model").write_text("large")
    print(folder, flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_stopped_process_leaves_no_folder(tmp_path, number, capsys):
    """Nor does a killed one, when the next comes; what others have made there stays."""
    run = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    folder = Path(run.stdout.readline().strip())
    assert folder.parent == tmp_path
    (tmp_path / ".hf-mine").mkdir()
    with own_folder(tmp_path, ".hf-"):
        assert folder.exists()  # of a living process
    run.send_signal(number)
    assert run.wait() == (-number if number == signal.SIGKILL else 128 + number)
    assert folder.exists() == (number == signal.SIGKILL)
    with own_folder(tmp_path, ".hf-") as own:
        assert set(tmp_path.iterdir()) == {own, tmp_path / ".hf-mine"}
    assert (f"removed {folder}" in capsys.readouterr().err) == (number == signal.SIGKILL)
