"""One SLURM for all tests of this folder; they are skipped where there can be none."""

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from helm_megatron.data.output import own_folder
from tests.slurm.cluster import Cluster, obstacle

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cluster():
    if reason := obstacle():
        pytest.skip(f"no SLURM here: {reason}")
    # Not in pytest's folder, which only its owner may enter: munge wants its socket open to all.
    # Those of killed runs are removed.
    with own_folder(Path(tempfile.gettempdir()), "slurm-") as folder, Cluster(folder) as running:
        yield running


@dataclass
class Jobs:
    """Submits the repository's job scripts with all their output in one folder."""

    cluster: Cluster
    folder: Path

    @property
    def env(self):
        return {
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "CHECKPOINT_DIR": str(self.folder / "checkpoints"),
            "LOG_DIR": str(self.folder / "logs"),
            "HF_DIR": str(self.folder / "hf"),
            "EVALUATION_DIR": str(self.folder / "evaluation"),
            "SBATCH_OUTPUT": str(self.folder / "job-%j.out"),
            "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
        }

    def pretrain(self, *flags, env=None, sbatch=()):
        """Submit a training of the tiny recipe on two nodes; returns its id."""
        script = [ROOT / "slurm" / "pretrain.sbatch", "examples/tiny_mice.sh", *flags]
        return self.cluster.submit(
            "--nodes=2", *sbatch, *script, env=self.env | (env or {}), cwd=ROOT
        )

    def run(self, *command):
        """Run a command on the controller, in the repository's folder."""
        return self.cluster.run(*command, env=self.env, cwd=ROOT)

    def output(self, job):
        """What a job's script has printed."""
        path = self.folder / f"job-{job}.out"
        return path.read_text() if path.exists() else ""

    def log(self, job, attempt):
        """The training log of an attempt."""
        path = self.folder / "logs" / job / f"attempt-{attempt}.log"
        return path.read_text() if path.exists() else ""

    def wait_for(self, job, attempt, text):
        """Wait until an attempt's training log has a text."""
        what = f"{text!r} in attempt {attempt} of job {job}"
        self.cluster.wait_until(lambda: text in self.log(job, attempt), 300, what)


@pytest.fixture
def jobs(cluster, tmp_path):
    return Jobs(cluster, tmp_path)
