import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cases import ONE, Model
from workers import Pool


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
