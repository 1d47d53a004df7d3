"""Runs of pretrain_helm.py in forked processes."""

import pytest

from tests.pretrain.forked import Starter


@pytest.fixture(scope="session")
def starter(tmp_path_factory):
    return Starter(tmp_path_factory.mktemp("runs"))
