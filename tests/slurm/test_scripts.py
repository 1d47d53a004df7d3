"""The job scripts without SLURM: what they would run, and when a job starts again."""

import os
import shlex
import shutil
import subprocess

import pytest

from tests.slurm.conftest import ROOT


def dry_run(*flags, **env):
    """Standard output of pretrain.sbatch's dry run, its exit code, and its errors."""
    result = subprocess.run(
        ["bash", "slurm/pretrain.sbatch", "examples/tiny_mice.sh", *flags],
        cwd=ROOT,
        env=os.environ | {"DRY_RUN": "1"} | env,
        capture_output=True,
        text=True,
    )
    return result.stdout, result.returncode, result.stderr


def launch_of(**env):
    """The command of the training step: up to the program, and the program with its flags."""
    out, code, errors = dry_run(**env)
    assert code == 0, errors
    command = shlex.split(out.splitlines()[1])
    program = command.index("slurm/node.sh") - 1
    return command[:program], command[program:]


IMAGE = {"CONTAINER_IMAGE": "/images/helm", "CONTAINER_MOUNTS": "/a:/b,/c:/d"}
RUNTIMES = {
    "none": [],
    "pyxis": [
        *["--container-image=/images/helm", "--container-mounts=/a:/b,/c:/d"],
        *["--container-workdir=/work", "--no-container-mount-home", "--extra", "1"],
    ],
    "apptainer": [
        *["apptainer", "exec", "--no-home", "--pwd", "/work", "--bind", "/a:/b", "--bind", "/c:/d"],
        *["--nv", "--extra", "1", "/images/helm"],
    ],
    "docker": ["bash", "slurm/run_container.sh"],
    "podman": ["bash", "slurm/run_container.sh"],
}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_same_program_runs_under_each_container_runtime(runtime):
    plain, program = launch_of()
    settings = {"CONTAINER_WORKDIR": "/work", "CONTAINER_ARGS": "--extra 1", "GPUS_PER_NODE": "8"}
    launch, same = launch_of(**IMAGE, **settings, CONTAINER_RUNTIME=runtime)
    assert same == program
    assert launch == [*plain, *RUNTIMES[runtime]]
    assert program[-5:-1:2] == ["--save", "--load"]
    assert program[-4] == program[-2]


def test_mounts_may_have_spaces():
    mounts = {"CONTAINER_RUNTIME": "apptainer", "CONTAINER_MOUNTS": "/a b:/c d,/e:/f"}
    launch, _ = launch_of(**IMAGE | mounts)
    binds = [launch[i + 1] for i, word in enumerate(launch) if word == "--bind"]
    assert binds == ["/a b:/c d", "/e:/f"]


@pytest.mark.parametrize(
    ("flags", "env", "message"),
    [
        (["--load", "x"], {}, "--load: set CHECKPOINT_DIR instead"),
        (["--save=x"], {}, "--save=x: set CHECKPOINT_DIR instead"),
        ([], {"CONTAINER_RUNTIME": "docker"}, "needs CONTAINER_IMAGE"),
        ([], {"CONTAINER_RUNTIME": "lxc", "CONTAINER_IMAGE": "x"}, "is none of none pyxis"),
        ([], {"DRY_RUN": "0"}, "submit me: sbatch slurm/pretrain.sbatch"),
    ],
)
def test_mistakes_are_explained(flags, env, message):
    out, code, errors = dry_run(*flags, **env)
    assert (out, code) == ("", 2)
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_a_script_that_runs_in_an_image_says_so(tmp_path):
    """An image has no SLURM."""
    for program in ("bash", "basename", "wc"):
        (tmp_path / program).symlink_to(shutil.which(program))
    env = {"PATH": str(tmp_path), "SLURM_JOB_NODELIST": "node[1-2]", "DRY_RUN": "0"}
    out, code, errors = dry_run(**env)
    assert (out, code) == ("", 2)
    assert "error: no scontrol here" in errors and len(errors.splitlines()) == 1


END = """
say() { echo "$*"; }
scontrol() { echo "scontrol $*"; exit 0; }
source slurm/attempts.sh
log=$LOG_DIR/log
eval "$STATE"
end_attempt
"""


@pytest.mark.parametrize(
    ("state", "begun_at", "log", "requeued", "code"),
    [
        ("step_status=0", [0], "", False, 0),
        ("step_status=1 stopping=1", [0], "", True, 0),
        ("step_status=0 stopping=1", [0], "", True, 0),
        ("step_status=1", [0, 0, 0], "ncclSystemError", True, 0),
        ("step_status=1", [5, 5, 5], "ncclSystemError", False, 1),
        ("step_status=1", [0, 5, 0, 5, 5], "ncclSystemError", True, 0),
        ("step_status=1", [0], "0: [rank0] pretrain_helm.py: error: no", False, 1),
        ("step_status=1 stopping=1 was_cancelled=1", [0], "", False, 143),
        ("step_status=1 stopping=1 REQUEUE=0", [0], "", False, 1),
    ],
)
def test_when_a_job_starts_again(tmp_path, state, begun_at, log, requeued, code):
    """The checkpoint is at iteration 5; two restarts without progress are allowed."""
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("5")
    (tmp_path / "progress").write_text("".join(f"{i}\n" for i in begun_at))
    (tmp_path / "log").write_text(f"{log}\n")
    folders = {"CHECKPOINT_DIR": str(tmp_path), "LOG_DIR": str(tmp_path)}
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", END],
        cwd=ROOT,
        env=os.environ | folders | {"SLURM_JOB_ID": "7", "MAX_RESTARTS": "2", "STATE": state},
        capture_output=True,
        text=True,
    )
    assert ("scontrol requeue 7" in result.stdout) == requeued, result
    assert result.returncode == code, result


def test_a_job_whose_nodes_fail_again_and_again_ends(tmp_path):
    (tmp_path / "progress").write_text("0\n0\n0\n")
    folders = {"CHECKPOINT_DIR": str(tmp_path), "LOG_DIR": str(tmp_path), "MAX_RESTARTS": "2"}
    command = "say() { echo $*; }; source slurm/attempts.sh; begin_attempt"
    env = os.environ | folders
    assert subprocess.run(["bash", "-euc", command], cwd=ROOT, env=env).returncode == 1
