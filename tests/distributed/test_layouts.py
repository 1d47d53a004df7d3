"""One process against every layout: from the same weights the same loss, gradients, training."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cases import (
    CASES,
    FP64_CASES,
    HELM_D,
    HELM_D_MHA,
    HMLA_DENSE,
    MICE,
    MICE_GQA,
    MICE_Q_LORA,
    MICE_REFERENCE,
    ONE,
    SAVED_CASES,
    Layout,
    Model,
    has_experts,
)
from conftest import Measured
from workers import Pool

from helm_megatron.verify.result import FP32, FP64, Comparison, Run, Tolerances, wrong

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
Reference = Callable[[Model], tuple[Path, Run]]


def assert_equal(one: Run, results: list[Comparison], tolerances: Tolerances) -> None:
    """Every rank of a layout found what one process did, up to rounding."""
    t = tolerances
    for result in results:
        assert result.run.loss == pytest.approx(one.loss, rel=t.loss)
        assert not wrong(result.gradients, t.gradient, t.gradient_floor)
        # Loss and gradient norm; with clipping the norm decides about the step.
        for got, expected in zip(result.run.training, one.training, strict=True):
            assert got == pytest.approx(expected, rel=t.training)
        assert not wrong(result.trained, t.trained, t.trained_floor)


def test_layout_equals_one_process(
    pool: Pool,
    reference: Reference,
    fresh_path: Callable[[], Path],
    measured: Measured,
    model: Model,
    layout: Layout,
) -> None:
    directory, one = reference(model)
    results = pool.run(layout.world, "compare", model, layout, directory, fresh_path())
    measured(model, layout, one, results)
    assert_equal(one, results, FP32)


@each_fp64_case
def test_layout_equals_one_process_in_fp64(
    pool: Pool,
    reference: Reference,
    fresh_path: Callable[[], Path],
    measured: Measured,
    model: Model,
    layout: Layout,
) -> None:
    directory, one = reference(model)
    results = pool.run(layout.world, "compare", model, layout, directory, fresh_path())
    measured(model, layout, one, results)
    assert_equal(one, results, FP64)
    # A gradient of zero would show nothing.
    assert not [d.name for result in results for d in result.gradients if d.scale < 1e-7]


@each_saved_case
def test_checkpoint_does_not_depend_on_the_layout(
    pool: Pool, reference: Reference, fresh_path: Callable[[], Path], model: Model, layout: Layout
) -> None:
    directory, _ = reference(model)
    again = fresh_path()
    pool.run(layout.world, "save_again", model, layout, directory, again)
    assert pool.run(1, "differing_tensors", model, ONE, directory, again) == [[]]


PARALLELISMS = {
    "tensor": lambda layout: layout.tensor > 1,
    "sequence": lambda layout: layout.sequence,
    "pipeline": lambda layout: layout.pipeline > 1,
    "context": lambda layout: layout.context > 1,
    "data": lambda layout: layout.data > 1,
    "expert": lambda layout: layout.expert > 1,
}
MAIN_MODELS = [HELM_D, HELM_D_MHA, HMLA_DENSE, MICE, MICE_Q_LORA, MICE_REFERENCE, MICE_GQA]


@pytest.mark.parametrize("parallelism", PARALLELISMS)
@pytest.mark.parametrize("model", MAIN_MODELS, ids=lambda model: model.name)
def test_default_cases_cover(model: Model, parallelism: str) -> None:
    """Without --all-layouts every kind of model still meets every parallelism."""
    layouts = [layout for other, layout in CASES if other is model]
    met = any(PARALLELISMS[parallelism](layout) for layout in layouts)
    assert met == (parallelism != "expert" or has_experts(model))
