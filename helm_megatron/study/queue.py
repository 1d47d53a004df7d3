"""The runs of a study, N at a time on this machine: started, stopped with it, gone on with."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from helm_megatron.child_processes import ends_with_this
from helm_megatron.study import records
from helm_megatron.study.config import Run, Study
from helm_megatron.study.errors import StudyError

PROGRAM = ("-m", "helm_megatron.cli", "pretrain")
EVALUATION = ("-m", "helm_megatron.cli", "evaluate")


@dataclass(frozen=True)
class Job:
    """A run with its folder and its command.

    Attributes:
        tasks: the question sets that its model answers after the training.
    """

    run: Run
    folder: Path
    command: list[str]
    tasks: tuple[str, ...] = ()

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints are, if it has any."""
        return self.folder / "checkpoints"

    @property
    def scores_file(self) -> Path:
        """What its evaluation writes last."""
        return self.folder / "evaluation" / "scores.json"

    @property
    def record(self) -> records.Record | None:
        """What it came to; None if it has not, or as another command.

        Raises:
            StudyError: its record is damaged.
        """
        found = records.read(self.folder / "record.json")
        return found if found is not None and found.command == self.command else None

    @property
    def scores(self) -> dict[str, records.Answers] | None:
        """What its model answered, by question set; None if it has not been asked these.

        Raises:
            StudyError: the file of the scores is damaged.
        """
        return records.read_scores(self.scores_file, self.tasks)

    @property
    def next_command(self) -> list[str] | None:
        """What is to be run next: the training, then the questions; None when both are done."""
        if self.record is None:
            return self.command
        if not self.tasks or self.scores is not None:
            return None
        model = ["--load", str(self.checkpoints), "--output-dir", str(self.scores_file.parent)]
        asked = ["--tasks", ",".join(self.tasks), "--batch-size", "64", "--overwrite"]
        return [sys.executable, *EVALUATION, *model, *asked]


def job(study: Study, run: Run, rate: float, output: Path) -> Job:
    """The job of a run at a learning rate; what it writes lies below the output folder."""
    folder = output / study.size / run.variant / f"lr-{rate:g}" / f"seed-{run.seed}"
    flags = study.command_flags(run, rate)
    if "--save-interval" in flags:  # then a killed run goes on where it was
        checkpoints = str(folder / "checkpoints")
        flags += ["--save", checkpoints, "--load", checkpoints]
    command = [sys.executable, *PROGRAM, *flags]
    if study.processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        command[1:1] = [*launcher, str(study.processes)]
    return Job(run, folder, command, study.tasks if run.learning_rate is None else ())


@contextlib.contextmanager
def lock(output: Path) -> Iterator[int]:
    """Hold the output folder; its runs hold it too, so that no other study meets one of them.

    Raises:
        StudyError: another study has it, or a run that a killed study left is still ending.
    """
    output.mkdir(parents=True, exist_ok=True)
    with (output / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StudyError(
                f"{output} is in use: by another study, or by a run of one that was killed"
            ) from error
        yield file.fileno()


def run_all(jobs: Sequence[Job], at_once: int, held: int) -> dict[int, str]:
    """Run the jobs that are not done yet.

    Args:
        at_once: how many side by side.
        held: the file descriptor of `lock`.

    Returns:
        Why each failed that did, by the run's number.
    """
    waiting = [each for each in jobs if each.next_command is not None]
    done = len(jobs) - len(waiting)
    print(f"{len(jobs)} runs, {done} done before", file=sys.stderr, flush=True)
    running: dict[int, tuple[Job, subprocess.Popen]] = {}
    failed: dict[int, str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                next_job = waiting.pop(0)
                running[next_job.run.number] = next_job, _start(next_job, held)
            time.sleep(0.1)
            for number, (ended, process) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[number]
                reason = _finish(ended, process.returncode)
                if reason is None and ended.next_command is not None:
                    waiting.insert(0, ended)
                    continue
                if reason is not None:
                    failed[number] = reason
                _say(ended, reason)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()
    return failed


def _start(job: Job, held: int) -> subprocess.Popen:
    job.folder.mkdir(parents=True, exist_ok=True)
    command = job.next_command
    assert command is not None
    if command is job.command:
        _clear(job)
    # Of a training that cannot go on, only the last start counts.
    mode = "a" if "--save" in command else "w"
    with _log(job).open(mode) as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[held],
            preexec_fn=ends_with_this(),  # runs must not go on unseen
        )


def _clear(job: Job) -> None:
    """Remove what is in the job's folder of another model: scores, and where the command that made
    them was another, checkpoints and log, which the training would go on from.
    """
    job.scores_file.unlink(missing_ok=True)
    begun, command = job.folder / "command.json", json.dumps(job.command)
    if not begun.is_file() or begun.read_text(errors="replace") != command:
        shutil.rmtree(job.checkpoints, ignore_errors=True)
        (job.folder / "log").unlink(missing_ok=True)
        begun.write_text(command)


def _log(job: Job) -> Path:
    """The file with what the next command says."""
    return job.folder / ("log" if job.record is None else "evaluation.log")


def _finish(job: Job, code: int) -> str | None:
    """Write the record of a training that ended; what is wrong where it came to nothing."""
    text = _log(job).read_text(errors="replace")
    if code:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        said = [line for line in lines if "error" in line.lower()] or lines or ["nothing"]
        return f"exit code {code}: {said[-1]}"
    try:
        if job.record is None:
            records.write(records.of_log(text, job.command), job.folder / "record.json")
        elif job.scores is None:
            return f"the evaluation has no scores for {', '.join(job.tasks)}"
    except StudyError as error:
        return str(error)
    return None


def _say(job: Job, reason: str | None) -> None:
    name = f"{job.run.variant}, seed {job.run.seed}, {job.folder.parent.name}"
    outcome = "done" if reason is None else f"failed ({_log(job)}): {reason}"
    print(f"{name}: {outcome}", file=sys.stderr, flush=True)
