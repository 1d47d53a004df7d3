"""Fused and chunked cross entropy give the loss and the gradients of the plain one."""

import numpy as np
import pytest
from workers import Pool

from tests import forked

TP = "--tensor-model-parallel-size 2"
LAYOUTS = {"one process": (1, ""), "TP": (2, TP), "TP + SP": (2, f"{TP} --sequence-parallel")}
# Chunks of the sequence of 64, the last one shorter.
CHUNKS = "--logits-chunk-size 24"
FUSED = "--cross-entropy-loss-fusion --cross-entropy-fusion-impl native --bf16"
LOGITS = 64 * 2 * 1024 * 4


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return Pool("loss_run", tmp_path_factory.mktemp("workers"))


def run(pool, layout, *ways):
    """What every rank found of every way."""
    world, flags = LAYOUTS[layout]
    ports = [forked.free_port() for _ in ways]
    return pool.run(
        world, "results", [[*way.split(), *flags.split()] for way in ways], world, ports
    )


def assert_same(results, expected, tolerance):
    assert results["loss"] == pytest.approx(expected["loss"], rel=tolerance)
    assert results["gradients"].keys() == expected["gradients"].keys()
    for name, gradient in expected["gradients"].items():
        error = np.abs(np.subtract(results["gradients"][name], gradient)).max()
        assert error <= tolerance * np.abs(gradient).max(), name


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_chunks(pool, layout, geometry):
    plain = f"--geometry {geometry} --untie-embeddings-and-output-weights"
    for expected, chunked in run(pool, layout, plain, f"{plain} {CHUNKS}"):
        assert_same(chunked, expected, 1e-5)


def test_chunks_of_tied_weights(pool):
    [[expected, chunked]] = run(pool, "one process", "", CHUNKS)
    assert_same(chunked, expected, 1e-5)


def test_chunks_are_never_the_whole_logits(pool):
    [[whole, chunked]] = run(pool, "one process", "", CHUNKS)
    assert chunked["largest"] < LOGITS <= whole["largest"]


@pytest.mark.parametrize("layout", ["one process", "TP + SP"])
def test_fused(pool, layout):
    for expected, fused in run(pool, layout, "--bf16", FUSED):
        assert_same(fused, expected, 1e-2)
