import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cases import ALL_CASES, CASES, ONE, Layout, Model
from workers import Pool

from helm_megatron.verify.result import FP32, Comparison, Run, worst_first

Measured = Callable[[Model, Layout, Run, list[Comparison]], None]


class Row(NamedTuple):
    """The largest differences of one model in one layout."""

    layout: str
    dtype: str
    model: str
    loss: float
    gradient: float
    tensor: str
    trained: float | None

    def __str__(self) -> str:
        trained = "" if self.trained is None else f"{self.trained:.0e}"
        return (
            f"| {self.layout} | {self.dtype} | {self.model} | {self.loss:.0e} "
            f"| {self.gradient:.0e} | `{self.tensor}` | {trained} |"
        )


ROWS = pytest.StashKey[list[Row]]()


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Processes that have Megatron imported."""
    return Pool("layout_run", tmp_path_factory.mktemp("workers"))


@pytest.fixture(scope="session")
def fresh_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes paths at which nothing is yet."""
    directory = tmp_path_factory.mktemp("layouts")
    count = itertools.count()
    return lambda: directory / str(next(count))


@pytest.fixture(scope="session")
def reference(pool: Pool, fresh_path: Callable[[], Path]) -> Callable[[Model], tuple[Path, Any]]:
    """The one-process run of a model, done once: its directory and what it returned."""
    cache: dict[str, tuple[Path, Any]] = {}

    def run(model: Model) -> tuple[Path, Any]:
        if model.name not in cache:
            directory = fresh_path()
            [result] = pool.run(1, "reference", model, ONE, directory)
            cache[model.name] = directory, result
        return cache[model.name]

    return run


@pytest.fixture(scope="session")
def weights(pool: Pool, fresh_path: Callable[[], Path]) -> Callable[[Model], Path]:
    """The directory of a model's `weights`, without the run that `reference` makes."""

    cache: dict[str, Path] = {}

    def save(model: Model) -> Path:
        if model.name not in cache:
            cache[model.name] = fresh_path()
            pool.run(1, "save_weights", model, ONE, cache[model.name])
        return cache[model.name]

    return save


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Keeps the largest differences of a layout for the report at the end."""
    rows = request.config.stash.setdefault(ROWS, [])

    def keep(model: Model, layout: Layout, one: Run, results: list[Comparison]) -> None:
        loss = max(abs(result.run.loss / one.loss - 1) for result in results)
        gradients = (d for result in results for d in result.gradients)
        trained = (d for result in results for d in result.trained)
        (gradient, where), *_ = worst_first(gradients, FP32.gradient_floor)
        way = worst_first(trained, FP32.trained_floor)[0][0] if model.training_steps else None
        rows.append(Row(layout.name, model.dtype, model.name, loss, gradient, where.name, way))

    return keep


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--exactness-report",
        action="store_true",
        help="Print the table of docs/exactness.md: largest differences by layout and model.",
    )
    parser.addoption(
        "--all-layouts",
        action="store_true",
        help="Every model in every layout of tests/distributed/cases.py: about an hour.",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.function.__name__ == "test_layout_equals_one_process":
        cases = ALL_CASES if metafunc.config.getoption("--all-layouts", default=False) else CASES
        names = [f"{model.name}-{layout.name}" for model, layout in cases]
        metafunc.parametrize(("model", "layout"), cases, ids=names)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    rows = sorted(config.stash.get(ROWS, []), key=lambda row: (row.layout, row.dtype, row.model))
    if not config.getoption("--exactness-report", default=False) or not rows:
        return
    terminalreporter.section("largest relative differences from one process")
    for row in rows:
        terminalreporter.write_line(str(row))
    terminalreporter.section("worst of each layout")
    for line in worst_of_layouts(rows):
        terminalreporter.write_line(line)


def worst_of_layouts(rows: list[Row]) -> Iterator[str]:
    """Rows of the table in docs/exactness.md: each number the worst of all models."""
    for (layout, dtype), group in itertools.groupby(rows, lambda row: (row.layout, row.dtype)):
        models = list(group)
        worst = max(models, key=lambda row: row.gradient)
        loss = max(row.loss for row in models)
        trained = max((row.trained for row in models if row.trained is not None), default=None)
        way = "" if trained is None else f"{trained:.0e}"
        yield (
            f"| {layout} | {dtype} | {len(models)} | {loss:.0e} | {worst.gradient:.0e} "
            f"| {worst.model}: `{worst.tensor}` | {way} |"
        )
