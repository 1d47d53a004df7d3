"""`helm-megatron doctor` trains a step, and fails if that fails."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

from helm_megatron import doctor

ROOT = Path(__file__).parents[1]


def test_doctor_reports_versions_and_trains_a_step():
    command = [sys.executable, "-m", "helm_megatron.cli", "doctor"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "one training step: works" in result.stdout
    assert f"megatron-core        {metadata.version('megatron-core')}" in result.stdout


def test_a_step_that_fails_is_explained(monkeypatch):
    train = "import sys; sys.exit('pretrain_helm.py: error: no such thing')"
    monkeypatch.setattr(doctor, "TRAIN", train)
    problem = doctor.training_problem(60)
    assert problem == "failed with exit code 1: pretrain_helm.py: error: no such thing"
    monkeypatch.setattr(doctor, "TRAIN", "import time; time.sleep(60)")
    assert doctor.training_problem(0.5) == "did not end within 0.5 s"
    assert doctor.module_state("no_such_module") == "off, not installed"
