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
        "CUDA_DEVICE_MAX_CONNECTIONS": "32",
        "GPUS_PER_NODE": "8",
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "1",
        "SLURM_NODEID": "3",
    }
    started = []

    (tmp_path / "podman").symlink_to(tmp_path / "docker")
    # Of the machine of these tests.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "CUDA_"))}

    def run(seconds, **more):
        env = inherited | settings | {"SECONDS_OF_RUN": str(seconds)} | more
        command = ["bash", "slurm/run_container.sh", "train", "--flag"]
        started.append(subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True))
        return started[-1], tmp_path / "calls"

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
    assert "--env CUDA_DEVICE_MAX_CONNECTIONS " in run
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


@pytest.mark.parametrize(
    ("env", "docker", "podman"),
    [
        ({}, "--gpus all", "--device nvidia.com/gpu=all"),
        (
            # As SLURM sets them where it hides other GPUs: the second counts from 0 in each job.
            {"SLURM_STEP_GPUS": "2,3", "CUDA_VISIBLE_DEVICES": "0,1"},
            '--gpus "device=2,3"',
            "--device nvidia.com/gpu=2 --device nvidia.com/gpu=3",
        ),
        (
            {"CUDA_VISIBLE_DEVICES": "GPU-5f"},
            '--gpus "device=GPU-5f"',
            "--device nvidia.com/gpu=GPU-5f",
        ),
    ],
)
def test_the_container_gets_the_gpus_of_its_job_only(start, env, docker, podman):
    for runtime, expected in (("docker", docker), ("podman", podman)):
        process, calls = start(0, CONTAINER_RUNTIME=runtime, **env)
        assert process.wait(60) == 0
        [run] = [line for line in calls.read_text().splitlines() if line.startswith("run")][-1:]
        assert f"{expected} --env" in run


def test_mounts_of_a_container_may_have_spaces(start, tmp_path):
    one_a_line = 'printf "<%s>" "$@" >"$CALLS"'
    (tmp_path / "docker").write_text(f"#!/bin/bash\n[[ $1 != run ]] || {one_a_line}\n")
    process, calls = start(0, CONTAINER_MOUNTS="/a b:/c d,/e:/f")
    assert process.wait(60) == 0
    assert "<--volume></a b:/c d><--volume></e:/f>" in calls.read_text()
