import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cases import ONE, Layout, Model
from workers import Pool

from helm_megatron.verify.result import FP32, Comparison, Run, worst_first

Measured = Callable[[Model, Layout, Run, list[Comparison]], None]
ROWS = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Four processes that have Megatron imported."""
    pool = Pool(4, "layout_run", tmp_path_factory.mktemp("workers"))
    yield pool
    pool.stop()


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
        rows.append(
            f"| {layout.name} | {model.name} | {model.dtype} | {loss:.0e} | {gradient:.0e} "
            f"| `{where.name}` | {'' if way is None else format(way, '.0e')} |"
        )

    return keep


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--exactness-report",
        action="store_true",
        help="Print the table of docs/exactness.md: largest differences by layout and model.",
    )


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if config.getoption("--exactness-report", default=False):
        terminalreporter.section("largest relative differences from one process")
        for row in sorted(config.stash.get(ROWS, [])):
            terminalreporter.write_line(row)
