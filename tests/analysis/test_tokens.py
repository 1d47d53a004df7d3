"""The geometry of a table of points, on tables whose geometry is known."""

import itertools
import math

import pytest
import torch

from helm_megatron.analysis import tokens
from helm_megatron.geometry import lorentz

C = 1.7


def test_radius_is_the_length_of_the_tangent_vector():
    directions = torch.nn.functional.normalize(torch.randn(5, 8, dtype=torch.float64), dim=-1)
    lengths = torch.tensor([0.0, 0.1, 1.0, 3.0, 8.0], dtype=torch.float64)
    points = lorentz.expmap0(lengths[:, None] * directions, C)
    assert torch.allclose(tokens.radii(points, C), lengths, atol=1e-9)


def path_lengths(edges, count):
    """Shortest paths between the nodes of a graph with edges of length 1."""
    apart = torch.full((count, count), math.inf, dtype=torch.float64).fill_diagonal_(0)
    for a, b in edges:
        apart[a, b] = apart[b, a] = 1
    for middle in range(count):
        apart = torch.minimum(apart, apart[:, middle, None] + apart[middle])
    return apart


def test_a_tree_has_hyperbolicity_zero():
    tree = path_lengths([(child, (child - 1) // 2) for child in range(1, 31)], 31)
    assert tokens.relative_hyperbolicity(tree) == 0


def four_points(apart):
    """delta by its definition, with the first point as base."""
    product = (apart[:1] + apart[:, :1] - apart) / 2
    triples = itertools.product(range(len(apart)), repeat=3)
    return max(min(product[i, k], product[k, j]) - product[i, j] for i, j, k in triples).item()


@pytest.mark.parametrize("c", [None, C])
def test_hyperbolicity_is_that_of_the_four_point_condition(c):
    points = torch.randn(12, 3, generator=torch.Generator().manual_seed(2)).double()
    apart = tokens.distances(points, c)
    expected = 2 * four_points(apart) / apart.max().item()
    assert tokens.relative_hyperbolicity(apart) == pytest.approx(expected, rel=1e-9)
    assert expected > 0.05


def test_a_square_is_far_from_a_tree():
    square = path_lengths([(0, 1), (1, 2), (2, 3), (3, 0)], 4)
    assert tokens.relative_hyperbolicity(square) == 1


def test_distances():
    points = torch.randn(6, 4)
    x, y = points[[2]], points[[5]]
    assert tokens.distances(points, C)[2, 5] == pytest.approx(lorentz.distance(x, y, C).item())
    assert tokens.distances(points, None)[2, 5] == pytest.approx((x - y).norm().item())


def test_shuffled_keeps_every_coordinate():
    points = torch.randn(50, 4)
    mixed = tokens.shuffled(points, torch.Generator().manual_seed(0))
    assert not torch.equal(mixed, points)
    assert torch.equal(mixed.sort(0).values, points.sort(0).values)


def test_a_plane_is_drawn_as_it_is():
    """Points of a plane through their centroid: the disk has their distances."""
    plane, _ = torch.linalg.qr(torch.randn(7, 2, dtype=torch.float64))
    half = torch.randn(10, 2, generator=torch.Generator().manual_seed(1)).double() @ plane.T
    points = lorentz.expmap0(torch.cat([half, -half]), C)
    drawn = tokens.disk(points, C)
    x, y = drawn[:, None], drawn[None]
    gap = (x - y).square().sum(-1)
    room = (1 - x.square().sum(-1)) * (1 - y.square().sum(-1))
    apart = math.sqrt(C) * torch.acosh(1 + 2 * gap / room)
    assert torch.allclose(apart, tokens.distances(points, C), atol=1e-6)
