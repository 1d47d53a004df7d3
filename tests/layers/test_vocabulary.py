"""Rows that pad the vocabulary are no tokens: whatever they hold, nothing depends on it."""

import pytest
import torch
import torch.nn.functional as F

from tests.layers import models

pytestmark = pytest.mark.usefixtures("one_process")
TOKENS, ROWS, SEQUENCE = 29, 96, 32


@pytest.mark.parametrize("helm", [{}, {"logits_chunk_size": 8}], ids=["at once", "in chunks"])
@pytest.mark.parametrize("geometry", ["lorentz", "euclidean"])
@pytest.mark.parametrize("tied", [True, False])
def test_padding_takes_no_part_in_the_softmax(geometry, helm, tied):
    config = models.dense(helm={"geometry": geometry, **helm})
    model = models.model(
        config, ROWS, SEQUENCE, token_count=TOKENS, share_embeddings_and_output_weights=tied
    )
    weights = dict(model.named_parameters())
    of_rows = [value for value in weights.values() if len(value) == ROWS and value.dim() <= 2]
    with torch.no_grad():
        for value in of_rows:
            value[TOKENS:] = 3.0
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(TOKENS, (2, SEQUENCE + 1), generator=random)
    positions = torch.arange(SEQUENCE).expand(2, -1)
    inputs, labels = ids[:, :-1], ids[:, 1:]

    logits = model(inputs, positions, None)
    assert torch.all(logits[..., TOKENS:] < -1e38)
    expected = F.cross_entropy(logits[..., :TOKENS].flatten(0, 1), labels.flatten())
    losses = model(inputs, positions, None, labels=labels)
    assert losses.mean().item() == pytest.approx(expected.item(), rel=1e-6)

    ours = torch.autograd.grad(losses.mean(), list(weights.values()))
    theirs = torch.autograd.grad(expected, list(weights.values()))
    for name, got, right in zip(weights, ours, theirs, strict=True):
        assert torch.allclose(got, right, rtol=1e-4, atol=1e-7), name
        if len(got) == ROWS:
            assert torch.all(got[TOKENS:] == 0), name


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean"])
def test_without_padding_nothing_is_masked(geometry):
    config = models.dense(helm={"geometry": geometry})
    plain, masked = (
        models.model(config, ROWS, SEQUENCE, token_count=count) for count in (None, ROWS)
    )
    tokens = torch.arange(SEQUENCE)[None]
    assert torch.equal(plain(tokens, tokens, None), masked(tokens, tokens, None))
