"""A node's docker container, with a program in docker's place that notes how it is called."""

import contextlib
import os
import signal
import subprocess
import time

import pytest

from tests.slurm.conftest import ROOT

DOCKER = """#!/bin/bash
echo "$*" >>"$CALLS"
[[ $1 != run ]] || exec sleep "$SECONDS_OF_RUN"
"""


@pytest.fixture
def start(tmp_path):
    """Start run_container.sh; returns the process and the file of calls."""
    (tmp_path / "docker").write_text(DOCKER)
    (tmp_path / "docker").chmod(0o755)
    settings = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "ATTEMPT_DIR": str(tmp_path),
        "CONTAINER_RUNTIME": "docker",
        "CONTAINER_IMAGE": "helm",
        "CONTAINER_MOUNTS": "/a:/b,/c:/d",
        "CONTAINER_WORKDIR": "/b",
        "CONTAINER_ARGS": "--ulimit memlock=-1",
        "CONTAINER_ENV": "WANDB_API_KEY",
        "WANDB_API_KEY": "secret",
        "GPUS_PER_NODE": "8",
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "1",
        "SLURM_NODEID": "3",
    }
    started = []

    def run(seconds):
        env = os.environ | settings | {"SECONDS_OF_RUN": str(seconds)}
        command = ["bash", "slurm/run_container.sh", "train", "--flag"]
        started.append(subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True))
        return started[0], tmp_path / "calls"

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_container_gets_mounts_gpus_and_variables_but_no_secret_on_its_command_line(start):
    process, calls = start(0)
    assert process.wait(60) == 0
    run, remove = calls.read_text().splitlines()
    assert run.startswith("run --rm --name helm-megatron-7-1-3 --network host")
    assert "--volume /a:/b --volume /c:/d --gpus all" in run
    assert "--env WANDB_API_KEY --ulimit memlock=-1 helm train --flag" in run
    assert "secret" not in run
    assert remove == "rm --force helm-megatron-7-1-3"


def test_the_container_of_a_cancelled_job_is_removed(start, tmp_path):
    process, calls = start(300)
    while not calls.exists():
        time.sleep(0.1)
    (tmp_path / "cancelled").touch()
    process.terminate()
    assert process.wait(60) == 143
    assert calls.read_text().splitlines()[-1] == "rm --force helm-megatron-7-1-3"
