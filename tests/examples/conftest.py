import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

from workers import Pool


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Fresh processes: every layout makes process groups of its own."""
    sys.path.insert(0, str(Path(__file__).parent))
    return Pool("recipe_run", tmp_path_factory.mktemp("workers"))


@pytest.fixture
def run_wordnet() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script of examples/wordnet with arguments."""
    folder = Path(__file__).parents[2] / "examples" / "wordnet"

    def run(name: str, *args: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, folder / name, *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    return run
