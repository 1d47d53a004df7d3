import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

from workers import Pool


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Fresh processes: every layout makes process groups of its own."""
    sys.path.insert(0, str(Path(__file__).parent))
    return Pool("recipe_run", tmp_path_factory.mktemp("workers"))
