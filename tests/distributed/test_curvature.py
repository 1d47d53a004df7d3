"""Experts take their initial curvature by their global index, wherever they live."""

import pytest
from cases import EP2, EP4, MICE, ONE, TP2_ETP1_EP2


@pytest.mark.parametrize("layout", [ONE, EP2, EP4, TP2_ETP1_EP2], ids=lambda layout: layout.name)
def test_curvatures_do_not_depend_on_the_layout(pool, fresh_path, layout):
    low, high = MICE.helm["mice_curvature_init"]
    spread = [low + (high - low) * i / 3 for i in range(4)]
    for found in pool.run(layout.world, "curvatures", MICE, layout, fresh_path()):
        assert found == pytest.approx(spread, rel=1e-6)
