import pytest
import torch


@pytest.fixture(params=[torch.float64, torch.float32], ids=["fp64", "fp32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The precision a golden case is run in; golden.RTOL has its tolerance."""
    return request.param
