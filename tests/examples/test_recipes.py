"""Every recipe, as model and twin, builds in its layouts for 8, 64 and 512 GPUs, and fits."""

from pathlib import Path

import pytest

from helm_megatron.plan.cluster import Cluster

EXAMPLES = Path(__file__).parents[2] / "examples"
# Parameters, in millions: the paper's names count neither the padded vocabulary nor all of ours.
RECIPES = {
    "helm_d_115m": (100, 130),
    "helm_mice_120m": (115, 135),
    "helm_mice_1b": (900, 1200),
    "helm_d_8b": (7900, 8200),
    "helm_mice_30b_a3b": (30000, 32000),
}
RELEASED = ("helm_d_115m", "helm_mice_120m", "helm_mice_1b")
CASES = [(name, "hardware") for name in RECIPES] + [(name, "release") for name in RELEASED]


def build(pool, name, **variables):
    [found] = pool.run(1, "sizes", EXAMPLES / f"{name}.sh", variables)
    return found


# One without experts, one with; all of them take minutes.
QUICK = ["helm_d_115m", "helm_mice_120m"]


def speed(name, shape, geometry):
    quick = name in QUICK and (shape, geometry) == ("hardware", "lorentz")
    return () if quick else pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "shape", "geometry"),
    [
        pytest.param(*case, geometry, marks=speed(*case, geometry))
        for case in CASES
        for geometry in ("lorentz", "euclidean")
    ],
)
def test_recipe_builds_and_fits(pool, name, shape, geometry):
    low, high = RECIPES[name]
    for gpus in (8, 64, 512):
        found = build(pool, name, SHAPE=shape, GEOMETRY=geometry, GPUS=str(gpus))
        assert found["flags"] == geometry
        assert found["sum"] == found["total"], gpus
        assert low < found["total"] / 1e6 < high
        assert found["memory"] < Cluster(gpus, memory=80).usable_bytes, gpus
