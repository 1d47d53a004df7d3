"""What training logs of the embedding is what `tools/analyze_geometry.py` finds in the table."""

import pytest
import torch
from cases import HELM_D, HELM_D_TWIN, ONE, TP2, TP2_PP2, VOCABULARY

from helm_megatron.analysis import tokens

ROWS = VOCABULARY - 3  # the others pad


def of_the_table(table: torch.Tensor, c: float | None) -> list[float]:
    """Median and largest distance to the origin, and relative hyperbolicity, of all rows."""
    radius = tokens.radii(table, c or 1.0)
    chosen = table[tokens.sample(len(table), torch.Generator().manual_seed(0))]
    delta = tokens.relative_hyperbolicity(tokens.distances(chosen, c))
    return [radius.median().item(), radius.max().item(), delta]


@pytest.mark.parametrize("model", [HELM_D, HELM_D_TWIN], ids=lambda model: model.name)
@pytest.mark.parametrize("layout", [TP2, TP2_PP2], ids=lambda layout: layout.name)
def test_every_layout_logs_the_geometry_of_the_whole_table(pool, fresh_path, model, layout):
    directory = fresh_path()
    pool.run(1, "save_weights", model, ONE, directory)
    arguments = (directory, fresh_path(), ROWS)
    results = pool.run(layout.world, "embedding_geometry", model, layout, *arguments)
    tables = [torch.from_numpy(part) for _, part in results if part is not None]
    assert len(tables) == 2
    expected = of_the_table(torch.cat(tables)[:ROWS], model.helm.get("embedding_curvature"))
    assert min(expected) > 0.05
    for measured, part in results:
        assert measured == (pytest.approx(expected, rel=1e-6) if part is not None else [0, 0, 0])
