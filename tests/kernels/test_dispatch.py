"""Triton runs on CUDA tensors only, and only where it can build its launchers."""

import shutil
from pathlib import Path

import pytest
import torch

from helm_megatron.kernels import dispatch
from helm_megatron.kernels.points import plain


@pytest.fixture(autouse=True)
def fresh_look():
    """What was found out is kept for the life of the process."""
    dispatch.has_triton.cache_clear()
    yield
    dispatch.has_triton.cache_clear()


class OnCuda:
    """A tensor of a GPU that need not be there."""

    is_cuda = True

    def __init__(self, dtype):
        self.element_size = torch.empty((), dtype=dtype).element_size


def test_cpu_tensors_and_fp64_run_in_torch(monkeypatch):
    monkeypatch.setattr(dispatch, "has_triton", lambda: True)
    assert dispatch.uses_triton(OnCuda(torch.bfloat16))
    assert not dispatch.uses_triton(OnCuda(torch.float64))
    assert not dispatch.uses_triton(torch.empty(1))


def test_without_a_compiler_torch_runs_and_a_warning_says_why(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.warns(UserWarning, match="install a C compiler"):
        assert not dispatch.uses_triton(OnCuda(torch.float32))
    assert not dispatch.uses_triton(OnCuda(torch.float32)), "without a second warning"


def test_points_on_a_gpu_without_a_compiler_take_the_plain_step(monkeypatch):
    """That the package is there does not say that it works."""
    table = OnCuda(torch.float32)
    table.dtype, table.is_contiguous = torch.float32, lambda: True
    table.device = torch.device("cuda")
    monkeypatch.setattr(dispatch, "has_triton", lambda: False)
    assert dispatch.for_points([table]) is plain


def test_only_here_does_anything_ask_for_triton_or_a_device():
    """Other files of the kernels import Triton or not, but do not choose."""
    package = Path(dispatch.__file__).parents[1]
    for path in package.rglob("*.py"):
        source = path.read_text()
        if path.name != "dispatch.py":
            assert 'find_spec("triton")' not in source and "uses_triton" not in source, path
        if package / "kernels" in path.parents and path.name != "dispatch.py":
            assert ".is_cuda" not in source and ".device.type" not in source, path
