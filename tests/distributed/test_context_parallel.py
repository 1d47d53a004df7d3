"""Low precision: what is taken off the times of the values is the same on every rank."""

import numpy as np
import pytest
from cases import CP2, CP4, HELM_D, ONE, Model

BF16 = Model("helm-d-bf16", HELM_D.config, HELM_D.helm, dtype="bfloat16")


@pytest.mark.parametrize("layout", [CP2, CP4], ids=lambda layout: layout.name)
def test_bf16_attention_of_a_spread_sequence(pool, fresh_path, layout):
    [one] = pool.run(1, "attention_in_bf16", BF16, ONE, fresh_path())
    for spread in pool.run(layout.world, "attention_in_bf16", BF16, layout, fresh_path()):
        # Rounding differs where the kernel takes the keys in other portions.
        np.testing.assert_allclose(spread, one, rtol=0.02, atol=0.02 * np.abs(one).max())
