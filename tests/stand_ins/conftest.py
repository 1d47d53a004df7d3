"""The machines; each is started once and used by all tests of a file."""

import pytest

from tests.pretrain.forked import Starter
from tests.stand_ins import machine


@pytest.fixture(scope="module")
def cuda(tmp_path_factory):
    """A CPU that says it is a GPU, without Transformer Engine and apex."""
    started = machine.start("cuda", tmp_path_factory.mktemp("cuda"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def starter(tmp_path_factory):
    """The CPU as it is."""
    return Starter(tmp_path_factory.mktemp("runs"))
