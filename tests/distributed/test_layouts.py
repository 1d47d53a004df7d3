"""One process against every layout: from the same weights the same loss, gradients, training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cases import CASES, FP64_CASES, ONE, SAVED_CASES, Layout, Model
from workers import Pool

# In fp32 a gradient of a scalar is a long sum of terms of both signs, hence the absolute part.
FP32 = {"relative": 2e-5, "absolute": 1e-7}
FP64 = {"relative": 1e-10, "absolute": 0.0}

each_case = pytest.mark.parametrize(
    ("model", "layout"), CASES, ids=[f"{model.name}-{layout.name}" for model, layout in CASES]
)
each_fp64_case = pytest.mark.parametrize(
    ("model", "layout"),
    FP64_CASES,
    ids=[f"{model.name}-{layout.name}" for model, layout in FP64_CASES],
)
each_saved_case = pytest.mark.parametrize(
    ("model", "layout"),
    SAVED_CASES,
    ids=[f"{model.name}-{layout.name}" for model, layout in SAVED_CASES],
)
Reference = Callable[[Model], tuple[Path, dict[str, Any]]]


def wrong_gradients(
    results: list[dict[str, Any]], relative: float, absolute: float
) -> list[tuple[float, str]]:
    """Those whose gradient is off by more than `relative` of its largest entry, worst first."""
    found = [
        (
            error / scale if scale else float("inf"),
            f"rank {rank} {name}: {error:.1e} of {scale:.1e}",
        )
        for rank, result in enumerate(results)
        for name, error, scale in result["differences"]
        if not error <= relative * scale + absolute
    ]
    return sorted(found, reverse=True)


@each_case
def test_layout_equals_one_process(
    pool: Pool, reference: Reference, fresh_path: Callable[[], Path], model: Model, layout: Layout
) -> None:
    directory, one = reference(model)
    results = pool.run(layout.world, "compare", model, layout, directory, fresh_path())
    for result in results:
        assert result["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert not wrong_gradients(results, **FP32)
    for result in results:
        # Loss and gradient norm; with clipping the norm decides about the step.
        for got, expected in zip(result["training"], one["training"], strict=True):
            assert got == pytest.approx(expected, rel=1e-4)


@each_fp64_case
def test_layout_equals_one_process_in_fp64(
    pool: Pool, reference: Reference, fresh_path: Callable[[], Path], model: Model, layout: Layout
) -> None:
    directory, one = reference(model)
    results = pool.run(layout.world, "compare", model, layout, directory, fresh_path())
    for result in results:
        assert result["loss"] == pytest.approx(one["loss"], rel=1e-12)
        # A gradient of zero would show nothing.
        assert not [name for name, _, scale in result["differences"] if scale < 1e-7]
    assert not wrong_gradients(results, **FP64)


@each_saved_case
def test_checkpoint_does_not_depend_on_the_layout(
    pool: Pool, reference: Reference, fresh_path: Callable[[], Path], model: Model, layout: Layout
) -> None:
    directory, _ = reference(model)
    again = fresh_path()
    pool.run(layout.world, "save_again", model, layout, directory, again)
    assert pool.run(1, "differing_tensors", model, ONE, directory, again) == [[]]
