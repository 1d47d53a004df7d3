"""`make quickstart`, stopped in the middle of its steps and started again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "quickstart.sh"
TIMEOUT = 900


class Quickstart:
    """Runs of the script in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "RUN_DIR": str(folder),
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "ITERATIONS": "4",
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *flags, **environment):
        """The script, run to its end."""
        return subprocess.run(
            ["bash", SCRIPT, *flags],
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )

    def stop(self, ready, send):
        """Start the script, and stop it when `ready()`; returns its exit status and output."""
        with (self.folder.parent / "output").open("w+") as output:
            script = subprocess.Popen(
                ["bash", SCRIPT],
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self.wait(lambda: ready() or script.poll() is not None)
            assert script.poll() is None, Path(output.name).read_text()
            send(script.pid)
            status = script.wait(timeout=60)
            self.wait(lambda: not self.processes(), seconds=60)
            return status, Path(output.name).read_text()

    def wait(self, ready, seconds=TIMEOUT):
        end = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < end, self.processes()
            time.sleep(0.02)

    def processes(self):
        """Command lines of all that the script started and that still runs, by its environment."""
        found = {}
        mine = f"RUN_DIR={self.folder}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mine in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_bytes()[-200:]
            except OSError:
                continue  # it has ended, or is not ours
        return found

    def said(self, name, text):
        """Whether a log file says a text."""
        path = self.folder / name
        return path.exists() and text in path.read_text(errors="replace")


@pytest.fixture
def quickstart(tmp_path):
    quickstart = Quickstart(tmp_path / "run")
    yield quickstart
    for pid in quickstart.processes():
        os.kill(pid, signal.SIGKILL)


def kill(pid):
    """End the script alone, without a chance to end what it started."""
    os.kill(pid, signal.SIGKILL)


def interrupt(pid):
    """As Ctrl-C does: to everything in the foreground."""
    os.killpg(pid, signal.SIGINT)


def kill_launcher(pid):
    """End torch's launcher alone; the ranks and the script see to themselves."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            stat = (process / "stat").read_text().rsplit(")", 1)[1].split()
            if (
                int(stat[2]) == pid  # its group: a shell of a pipeline stands between
                and b"torch.distributed.run" in (process / "cmdline").read_bytes()
            ):
                os.kill(int(process.name), signal.SIGKILL)
                return
        except OSError:
            continue
    raise AssertionError("no launcher")


@pytest.mark.slow
def test_stopped_at_any_step_it_goes_on(quickstart):
    folder, said = quickstart.folder, quickstart.said
    tracker = folder / "checkpoints" / "latest_checkpointed_iteration.txt"
    trains = "before the start of training step"

    quickstart.stop(lambda: list(folder.glob(".staged-*")), kill)
    assert not (folder / "wordnet.model").exists()

    status, output = quickstart.stop((folder / "wordnet.partial").exists, interrupt)
    assert status == 130 and "stopped; the same command goes on from here" in output
    assert not list(folder.glob(".staged-*"))
    assert not (folder / "wordnet_text_document.idx").exists()

    quickstart.stop(lambda: said("train.log", trains), kill)
    assert not tracker.exists()

    (folder / "train.log").unlink()  # it says already what is waited for
    status, output = quickstart.stop(lambda: said("train.log", trains), kill_launcher)
    assert status == 1 and "error: training failed; the whole log is" in output

    quickstart.stop(lambda: said("resume.log", trains), interrupt)
    assert tracker.read_text() == "2" and not (folder / "trained").exists()

    quickstart.stop(lambda: list(folder.glob(".hf.partial-*/hf/config.json")), kill)
    assert tracker.read_text() == "4" and not (folder / "hf").exists()

    done = quickstart.run()
    assert done.returncode == 0, done.stderr
    for word in ("wordnet.model: there already", "idx: there already", "trained already"):
        assert word in done.stdout
    assert "validation loss at iteration 4: " in done.stdout
    scores = json.loads((folder / "evaluation" / "scores.json").read_text())["scores"]
    assert all(0 < score["unigram"] < 1 for score in scores)
    for score in scores:
        said = f"{score['task']} ({score['metric']}): {score['value']:.3f} are right"
        assert (
            f"{said}; guessing gives 0.250, the unigram model {score['unigram']:.3f}" in done.stdout
        )

    before = (folder / "evaluation" / "scores.json").stat().st_mtime_ns
    again = quickstart.run()
    assert again.returncode == 0, again.stderr
    assert (folder / "evaluation" / "scores.json").stat().st_mtime_ns == before
    assert "hf: there already" in again.stdout and "evaluated already" in again.stdout
    table = re.search(r"\| task .*?\n\n", done.stdout, re.DOTALL)[0]
    assert table in again.stdout


@pytest.mark.parametrize(
    ("flags", "environment", "named"),
    [
        (["--seed", "2"], {}, "ITERATIONS=4, not ITERATIONS=4 --seed 2"),
        ([], {"ITERATIONS": "8"}, "ITERATIONS=4, not ITERATIONS=8"),
    ],
)
def test_other_settings_are_refused(quickstart, flags, environment, named):
    python = {"PYTHON": "/bin/false"}  # the first step fails, after the settings were written
    assert quickstart.run(**python).returncode == 1
    assert "[1/8]" in quickstart.run(**python).stdout
    refused = quickstart.run(*flags, **environment)
    assert refused.returncode == 1 and refused.stdout == ""
    folder = quickstart.folder
    assert refused.stderr == (
        f"error: {folder} was begun with {named}: remove it (make clean) or set another RUN_DIR\n"
    )


def test_a_folder_of_an_earlier_version_is_refused(quickstart):
    (quickstart.folder / "checkpoints").mkdir(parents=True)
    refused = quickstart.run()
    assert refused.returncode == 1
    assert "was begun with an earlier version of this script" in refused.stderr


@pytest.mark.parametrize("iterations", ["6", "0", "many", "-4"])
def test_iterations_that_cannot_be(quickstart, iterations):
    refused = quickstart.run(ITERATIONS=iterations)
    assert refused.stderr == f"error: ITERATIONS={iterations}: not a multiple of 4\n"
    assert refused.returncode == 1 and not quickstart.folder.exists()
