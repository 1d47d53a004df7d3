"""Initial weights: every part of a tensor's stream is what the whole stream has there."""

import functools

import numpy as np
import pytest
import torch
from megatron.core.dist_checkpointing import ShardedTensor

from helm_megatron import initialization
from helm_megatron.initialization import initialize
from tests.layers import models

CPU = torch.device("cpu")
PARTS = [(0, 1), (1, 2), (3, 10), (7, 8), (8, 100), (17, 900), (1000, 1)]


def test_parts_of_a_stream():
    values = initialization.normal
    whole = values(5, 0, 1001, CPU)
    for start, count in PARTS:
        assert torch.equal(values(5, start, count, CPU), whole[start : start + count])
    assert not torch.equal(values(6, 0, 1001, CPU), whole)


def test_normal_values_are_normal():
    values = initialization.normal(1, 0, 2**18, CPU)
    moments = [float(values.pow(k).mean()) for k in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.03)
    assert abs(float((values[:-1] * values[1:]).mean())) < 0.01


@pytest.mark.parametrize(
    ("whole", "offset", "shape"),
    [
        ((6, 5), (0, 0), (6, 5)),
        ((6, 5), (2, 0), (3, 5)),
        ((6, 5), (0, 2), (6, 3)),
        ((4, 6, 5), (3, 2, 0), (2, 5)),  # an expert's rows
        ((4, 6, 5), (3, 0, 1), (6, 2)),
        ((7,), (3,), (2,)),
    ],
)
def test_runs_are_the_indices_of_a_shard(whole, offset, shape):
    sizes = (1,) * (len(whole) - len(shape)) + shape
    indices = np.arange(np.prod(whole)).reshape(whole)
    expected = indices[tuple(slice(o, o + n) for o, n in zip(offset, sizes, strict=True))]
    found = [start + i for start, n in initialization.runs(whole, offset, shape) for i in range(n)]
    assert found == expected.flatten().tolist()


def test_large_shards_are_drawn_in_pieces(monkeypatch):
    def drawn():
        data = torch.empty(37, 11)
        shard = ShardedTensor.from_rank_offsets("a", data, (1, 1, 2))
        method = functools.partial(torch.nn.init.normal_, mean=0.5, std=2.0)
        initialization.draw(shard, method, 1)
        return data

    whole = drawn()
    monkeypatch.setattr(initialization, "AT_ONCE", 7)
    assert torch.equal(drawn(), whole)


def test_a_method_of_another_kind_is_refused():
    shard = ShardedTensor.from_rank_offsets("a", torch.empty(2, 2))
    with pytest.raises(ValueError, match="init_method_std"):
        initialization.draw(shard, torch.nn.init.kaiming_normal_, 1)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("geometry", ["lorentz", "euclidean"])
@pytest.mark.parametrize("make", [models.dense, models.mice])
def test_a_model_follows_from_its_seed(make, geometry):
    config = make(helm={"geometry": geometry}, init_method_std=0.02)

    def weights(seed):
        torch.manual_seed(0)
        model = models.model(config, seed=seed)
        return {name: value.detach() for name, value in model.named_parameters()}

    first, again, other = weights(1), weights(1), weights(2)
    layers = config.num_layers
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
        if value.dim() == 2:
            last = name.endswith(("linear_proj.weight", "linear_fc2.weight"))
            std = 0.02 / (2 * layers) ** 0.5 if last else 0.02
            assert float(value.std()) == pytest.approx(std, rel=0.15), name
            assert not torch.equal(value, other[name]), name
    matrices = [value for value in first.values() if value.dim() == 2]
    starts = {tuple(value.flatten()[:8].tolist()) for value in matrices}
    assert len(starts) == len(matrices), "two matrices of the same values"


@pytest.mark.usefixtures("one_process")
def test_a_parameter_that_is_not_drawn_is_an_error(monkeypatch):
    def forget_the_first(model, notes, seed):
        initialize(model, notes[1:], seed)

    monkeypatch.setattr("helm_megatron.model.initialize", forget_the_first)
    with pytest.raises(RuntimeError, match=r"values: embedding\.word_embeddings\.weight$"):
        models.model(models.dense())
