"""The fused steps of Riemannian Adam against their plain twin in fp64.

Triton's run on a GPU, or in its interpreter where TRITON_INTERPRET=1: for that this file runs
itself again, in a process of its own, since Triton reads the variable when it is imported.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helm_megatron.kernels import dispatch
from helm_megatron.kernels.points import cpu, op, plain
from helm_megatron.kernels.points.rule import Rule

IMPLEMENTATIONS = {"compiled": cpu}
DEVICE = "cpu"
if os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available():
    from helm_megatron.kernels.points import triton

    IMPLEMENTATIONS = {"triton": triton}
    DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

ROWS = 12


@pytest.fixture(params=IMPLEMENTATIONS)
def fused(request, monkeypatch):
    """Let fp32 tables go to the implementation, fp64 ones to the plain twin."""
    module = IMPLEMENTATIONS[request.param]
    if request.param == "compiled" and not cpu.is_available():
        pytest.skip("no C compiler")
    calls = []

    def chosen(tables):
        calls.append(1)
        return module if tables[0].dtype == torch.float32 else plain

    monkeypatch.setattr(dispatch, "for_points", chosen)
    yield module
    assert calls


def steps(dtype: torch.dtype, d: int, scale: float, amsgrad: bool, rule: dict) -> list[Tensor]:
    """Tables after some steps in which other rows are touched each time, and a frame's gradient."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(DEVICE, dtype)

    tables = [scale * normal(ROWS, d), normal(ROWS, d), 0.1 * normal(ROWS, d)]
    tables += [normal(ROWS, d).square() for _ in range(1 + amsgrad)]
    # Two rows that rest, one of which will be touched.
    tables[2][:2], tables[3][:2] = 0, -0.3
    frames = []
    for step in range(1, 6):
        grad = normal(ROWS, d)
        grad[torch.arange(ROWS) % step != step - 1] = 0
        tables[1] = grad
        touched = op.to_frame_(tables[0], grad, rule["c"])
        assert touched.tolist() == [i % step == step - 1 for i in range(ROWS)]
        frames.append(grad.clone())
        op.step_(tables, touched, Rule(0.1, 0.9, 0.99, 1e-8, step, **rule))
    return [tables[0], tables[2], *(t[:, 0] for t in tables[3:]), torch.stack(frames)]


@pytest.mark.parametrize("d", [5, 64])
@pytest.mark.parametrize(
    ("scale", "amsgrad", "rule"),
    [
        (1.0, False, {"c": 0.7}),
        (1.0, True, {"c": 2.3}),
        (1.0, False, {"c": 0.7, "retraction": True}),
        (0.02, True, {"c": 1.0, "min_norm": 1e-2}),
        (10.0, False, {"c": 0.1}),
    ],
)
def test_as_the_plain_twin(fused, d, scale, amsgrad, rule, monkeypatch):
    exact = steps(torch.double, d, scale, amsgrad, rule)
    found = steps(torch.float32, d, scale, amsgrad, rule)
    monkeypatch.setattr(dispatch, "for_points", lambda tables: plain)
    rounded = steps(torch.float32, d, scale, amsgrad, rule)
    for got, theirs, true in zip(found, rounded, exact, strict=True):
        assert error(got, true) <= 5 * error(theirs, true) + 1e-6


def error(found: Tensor, true: Tensor) -> float:
    """The largest error of an entry, as a part of the largest entry."""
    return float((found.double() - true).abs().max() / true.abs().max())


@pytest.mark.parametrize("where", [0, 1, 2, 3])
def test_what_is_not_a_number_is_not_hidden(fused, where):
    """In the point, the gradient, the momentum or the second moment of a row."""
    tables = [torch.ones(3, 8, device=DEVICE) for _ in range(4)]
    tables[where][1, 0] = float("nan")
    op.step_(tables, tables[1].new_ones(3, dtype=torch.bool), Rule(0.1, 0.9, 0.99, 0, 1, 1))
    assert tables[0].isnan().any(-1).tolist() == [False, True, False]
    nothing = tables[1].new_full((2, 8), float("nan"))
    assert op.to_frame_(torch.ones_like(nothing), nothing, 1.0).all()


def test_rest(fused):
    """Rows come to rest with their momentum zero and their second moment negative."""
    tables = [torch.ones(2, 8, device=DEVICE) for _ in range(4)]
    tables[2][0] = 1e-9
    idle = torch.zeros(2, dtype=torch.bool, device=DEVICE)
    op.step_(tables, idle, Rule(0.1, 0.9, 0.99, 1e-8, 1, 1.0))
    assert (tables[3][:, 0] > 0).tolist() == [False, True]
    assert (tables[2] == 0).all(-1).tolist() == [True, False]
    before = [table[0].clone() for table in tables]
    op.step_(tables, idle, Rule(0.1, 0.9, 0.99, 1e-8, 2, 1.0))
    assert torch.equal(tables[0][0], before[0])
    torch.testing.assert_close(tables[3][0, 0], 0.99 * before[3][0])


@pytest.mark.skipif(DEVICE == "cuda", reason="runs on the CPU")
def test_threads_change_nothing(monkeypatch):
    if not cpu.is_available():
        pytest.skip("no C compiler")

    def run(threads: int) -> list[Tensor]:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        monkeypatch.setattr(cpu, "_ENTRIES_PER_THREAD", 10)
        monkeypatch.setattr(dispatch, "for_points", lambda tables: cpu)
        return steps(torch.float32, 5, 1.0, True, {"c": 0.7})

    for one, other in zip(run(1), run(3), strict=True):
        assert torch.equal(one, other)


def test_without_a_compiler_there_is_the_plain_twin(monkeypatch):
    table = torch.ones(2, 3)
    assert dispatch.for_points([table.double()]) is plain
    assert dispatch.for_points([torch.ones(3, 2).T]) is plain
    cpu._library.cache_clear()
    try:
        monkeypatch.setenv("CC", "no-such-compiler")
        assert dispatch.for_points([table]) is plain
        monkeypatch.setenv("CC", "false")  # one that fails
        cpu._library.cache_clear()
        assert dispatch.for_points([table]) is plain
    finally:
        cpu._library.cache_clear()


@pytest.mark.skipif("triton" in IMPLEMENTATIONS, reason="runs the kernels already")
def test_triton_in_its_interpreter():
    pytest.importorskip("triton")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "triton"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0 and " passed" in run.stdout, run.stdout + run.stderr
