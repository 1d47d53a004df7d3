"""Ollivier-Ricci curvature against what is known exactly."""

import numpy as np
import pytest
import torch
from scipy import sparse, stats

from helm_megatron.analysis.ricci import edge_curvatures, neighbour_graph, transport_cost


def graph_of(edges, length=1.0):
    size = 1 + max(max(edge) for edge in edges)
    rows, columns = zip(*edges, *(edge[::-1] for edge in edges), strict=True)
    return sparse.csr_array((np.full(len(rows), length), (rows, columns)), shape=(size, size))


def complete(n):
    return [(i, j) for i in range(n) for j in range(i)]


def cycle(n):
    return [(i, (i + 1) % n) for i in range(n)]


# The middle of a tree in which every inner point has three neighbours comes first.
TREE = [(0, 1), (0, 2), (0, 3), (1, 4), (1, 5), (2, 6), (2, 7), (3, 8), (3, 9), (4, 10), (4, 11)]


@pytest.mark.parametrize("length", [1.0, 0.3])
def test_curvatures_known_exactly(length):
    # Half of Lin, Lu and Yau's curvature where half of the walker stays (Tohoku Math. J., 2011):
    # n / (n - 1) for a complete graph, 0 for long cycles, 2 / d + 2 / d' - 2 within a tree.
    for edges, known in ((complete(5), 5 / 8), (complete(3), 3 / 4), (cycle(8), 0)):
        found = edge_curvatures(graph_of(edges, length))
        assert len(found) == len(edges)
        assert torch.allclose(found, torch.full_like(found, known), atol=1e-9)
    # The first edges of the tree, by their points: 0-1, 0-2, 0-3.
    found = edge_curvatures(graph_of(TREE, length))[:3]
    assert torch.allclose(found, torch.full_like(found, -1 / 3), atol=1e-9)


def test_some_edges():
    graph = graph_of(TREE)
    found = edge_curvatures(graph, 4, torch.Generator().manual_seed(0))
    known = edge_curvatures(graph)
    assert len(found) == 4
    assert all((known - value).abs().min() < 1e-12 for value in found)


def test_transport_in_one_dimension():
    draw = np.random.default_rng(0)
    here, there, masses, others = draw.random(7), draw.random(5), draw.random(7), draw.random(5)
    masses, others = masses / masses.sum(), others / others.sum()
    found = transport_cost(np.abs(here[:, None] - there), masses, others)
    assert found == pytest.approx(stats.wasserstein_distance(here, there, masses, others))


def test_neighbours():
    places = torch.tensor([0.0, 1.0, 3.0, 7.0, 7.0], dtype=torch.float64)
    graph = neighbour_graph((places[:, None] - places).abs(), 1).toarray()
    joined = {(i, j): graph[i, j] for i, j in zip(*graph.nonzero(), strict=True) if i < j}
    # The two at one place look for the next one.
    assert joined == {(0, 1): 1, (1, 2): 2, (2, 3): 4, (2, 4): 4}
    assert (graph == graph.T).all()
