"""Grouped experts in every kind of layout against the plain ones in one process.

They start from the plain ones' checkpoint, so this shows too that it loads.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cases import (
    DP2_OVERLAP,
    EP2,
    EP2_ALLGATHER,
    MICE,
    ONE,
    TP2_EP2,
    Layout,
)
from test_layouts import Reference, assert_equal
from workers import Pool

from helm_megatron.verify.result import FP32

GROUPED = replace(MICE, name="mice-grouped", config={**MICE.config, "moe_grouped_gemm": True})
LAYOUTS = [EP2, EP2_ALLGATHER, TP2_EP2, DP2_OVERLAP]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_grouped_experts_equal_plain_ones_of_one_process(
    pool: Pool, reference: Reference, fresh_path: Callable[[], Path], layout: Layout
) -> None:
    directory, one = reference(MICE)
    assert_equal(
        one, pool.run(layout.world, "compare", GROUPED, layout, directory, fresh_path()), FP32
    )


def test_plain_experts_load_what_grouped_ones_save(
    pool: Pool, reference: Reference, fresh_path: Callable[[], Path]
) -> None:
    directory, _ = reference(MICE)
    again = fresh_path()
    pool.run(EP2.world, "save_again", GROUPED, EP2, directory, again)
    assert pool.run(1, "differing_tensors", MICE, ONE, directory, again) == [[]]
