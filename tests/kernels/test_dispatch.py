"""Triton runs on CUDA tensors only, and only where it can build its launchers."""

import shutil

import pytest
import torch

from helm_megatron.kernels import dispatch


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
