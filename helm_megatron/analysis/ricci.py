"""Ollivier-Ricci curvature of the graph of nearest neighbours among points.

Of an edge x-y (Ollivier, 2009): 1 - W1(m_x, m_y) / d(x, y), where m_x is where a lazy walker is
after a step from x, and W1 the cost of moving one distribution onto the other along shortest paths.
It is negative where the graph spreads out like a tree, zero on a grid, positive within a cluster.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import linprog
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

NEIGHBOURS = 10
LAZINESS = 0.5  # the part that stays, as is usual for graphs


def neighbour_graph(apart: Tensor, neighbours: int = NEIGHBOURS) -> sparse.csr_array:
    """The graph that joins each point to its nearest ones, weighted by distance, both ways.

    Args:
        apart: distances `[n, n]`.
        neighbours: edges from each point; fewer where there are fewer points, more of a point
            that is the neighbour of many. Points at one place have no distance and are not joined.
    """
    apart = apart.clone().fill_diagonal_(torch.inf)
    apart[apart == 0] = torch.inf
    near = apart.topk(min(neighbours, len(apart) - 1), largest=False)
    rows = np.repeat(np.arange(len(apart)), near.indices.shape[1])
    columns, weights = near.indices.flatten().numpy(), near.values.flatten().numpy()
    there = np.isfinite(weights)
    shape = (len(apart), len(apart))
    graph = sparse.csr_array((weights[there], (rows[there], columns[there])), shape=shape)
    return graph.maximum(graph.T)


def edge_curvatures(
    graph: sparse.csr_array, edges: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """The curvature of each edge of a symmetric graph of positive weights, fp64.

    Args:
        edges: only so many, chosen by the generator.
    """
    first, second = sparse.triu(graph).nonzero()
    chosen = torch.arange(len(first))
    if edges is not None and edges < len(first):
        chosen = torch.randperm(len(first), generator=generator)[:edges]
    paths = dijkstra(graph, directed=False)
    pairs = zip(first[chosen], second[chosen], strict=True)
    return torch.tensor([_curvature(graph, paths, x, y) for x, y in pairs], dtype=torch.float64)


def _curvature(graph: sparse.csr_array, paths: np.ndarray, x: int, y: int) -> float:
    (here, masses), (there, others) = _walker(graph, x), _walker(graph, y)
    cost = transport_cost(paths[np.ix_(here, there)], masses, others)
    return 1 - cost / paths[x, y]


def _walker(graph: sparse.csr_array, point: int) -> tuple[np.ndarray, np.ndarray]:
    """Where a lazy walker is after a step: points and their probabilities."""
    near = graph.indices[graph.indptr[point] : graph.indptr[point + 1]]
    moved = np.full(len(near), (1 - LAZINESS) / len(near))
    return np.append(near, point), np.append(moved, LAZINESS)


def transport_cost(costs: np.ndarray, masses: np.ndarray, others: np.ndarray) -> float:
    """W1: the least cost of moving `masses` `[m]` onto `others` `[n]`, at costs `[m, n]` each."""
    rows, columns = costs.shape
    leaves = sparse.kron(sparse.eye_array(rows), np.ones((1, columns)))
    arrives = sparse.kron(np.ones((1, rows)), sparse.eye_array(columns))
    # Both sums are 1: the last equation follows from the others.
    equations = sparse.vstack([leaves, arrives]).tocsr()[:-1]
    amounts = np.concatenate([masses, others])[:-1]
    found = linprog(costs.ravel(), A_eq=equations, b_eq=amounts, method="highs")
    if found.status:
        raise RuntimeError(f"no transport between the distributions: {found.message}")
    return float(found.fun)
