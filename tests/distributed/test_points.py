"""Riemannian Adam trains the same points in every layout, whatever rows the shards cut."""

import pytest
from cases import (
    DP2_OVERLAP,
    DP4_OPTIMIZER,
    HELM_D_POINTS,
    TP2,
    TP2_DP2_OPTIMIZER,
    TP4,
)
from test_layouts import assert_equal

from helm_megatron.verify.result import FP32

LAYOUTS = [TP2, TP4, DP2_OVERLAP, DP4_OPTIMIZER, TP2_DP2_OPTIMIZER]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_trained_points_equal_one_process(pool, reference, fresh_path, layout):
    directory, one = reference(HELM_D_POINTS)
    results = pool.run(layout.world, "compare", HELM_D_POINTS, layout, directory, fresh_path())
    assert_equal(one, results, FP32)


def test_rows_are_cut(pool, fresh_path):
    """One of these layouts has some rows on two ranks."""
    ranks = pool.run(2, "cut_rows", HELM_D_POINTS, DP2_OVERLAP, fresh_path())
    assert all(ranks)
