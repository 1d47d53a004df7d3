"""The residual's dropout, which Megatron hands to it with every call."""

import pytest
import torch

from helm_megatron.layers.residual import LorentzResidual
from tests.layers.models import dense

pytestmark = pytest.mark.usefixtures("one_process")


def test_dropout_acts_on_the_branch_alone_and_in_training_alone():
    residual = LorentzResidual(dense())
    x, f = torch.randn(6, 2, 64), torch.randn(6, 2, 64)
    without = residual(True, False)((f, None), x, 0.0)
    torch.testing.assert_close(residual(True, False)((f, None), x, 1.0), residual.combine(x, 0 * f))
    torch.testing.assert_close(residual(False, False)((f, None), x, 1.0), without)
    torch.manual_seed(3)
    dropped = residual(True, False)((f, None), x, 0.25)
    torch.manual_seed(3)
    kept = torch.nn.functional.dropout(torch.ones_like(f), 0.25)
    torch.testing.assert_close(dropped, residual.combine(x, kept * f))
