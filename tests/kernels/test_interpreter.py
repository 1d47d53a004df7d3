"""The Triton kernels without a GPU: test_fused.py in Triton's interpreter.

Triton reads TRITON_INTERPRET when it is imported, hence a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")


@pytest.mark.skipif(torch.cuda.is_available(), reason="test_fused.py runs the kernels on the GPU")
@pytest.mark.parametrize("name", ["test_fused.py", "test_experts.py"])
def test_triton_kernels_in_the_interpreter(name):
    tests = Path(__file__).with_name(name)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    run = subprocess.run(
        [*command, "-k", "triton"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and " passed" in run.stdout, run.stdout + run.stderr
    assert "skipped" not in run.stdout.splitlines()[-1], run.stdout
