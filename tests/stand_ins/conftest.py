"""The machines; each is started once and used by all tests of a file."""

import pytest

from tests.pretrain.forked import Starter
from tests.stand_ins import machine
from tests.stand_ins.transformer_engine import FOLDER


@pytest.fixture(scope="module")
def cuda(tmp_path_factory):
    """A CPU that says it is a GPU, without Transformer Engine and apex."""
    started = machine.start("cuda", tmp_path_factory.mktemp("cuda"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def triton(tmp_path_factory):
    """Triton's interpreter on such a CPU."""
    pytest.importorskip("triton")
    folder = tmp_path_factory.mktemp("triton")
    started = machine.start("triton", folder, TRITON_INTERPRET="1")
    yield started
    started.close()


@pytest.fixture(scope="module")
def te(tmp_path_factory):
    """Transformer Engine's Python on such a CPU."""
    if not FOLDER.is_dir():
        pytest.skip(f"{FOLDER} is not there: `make test` installs it")
    started = machine.start("transformer_engine", tmp_path_factory.mktemp("te"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def starter(tmp_path_factory):
    """The CPU as it is."""
    return Starter(tmp_path_factory.mktemp("runs"))
