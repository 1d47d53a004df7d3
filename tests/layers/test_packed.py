"""Documents packed into one sequence give the loss and gradients of each document alone."""

import pytest
import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams

from tests.layers.models import dense, mice, model, perturb

pytestmark = pytest.mark.usefixtures("one_process")

VOCABULARY = 96
LENGTHS = [7, 1, 15, 9]
# A mask leaves a document's rotary angles as they are in the sequence; Megatron's table is fp32.
PRECISION = {"mask": 1e-5, "thd": 1e-10}


def loss_and_gradients(lm, tokens, labels, mask=None, packed=None):
    """The summed loss of `[1, s]` tokens and its gradients by parameter."""
    lm.zero_grad()
    positions = torch.arange(tokens.shape[1]).unsqueeze(0)
    logits = lm(tokens, positions, mask, packed_seq_params=packed)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in lm.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


def documents_alone(lm, tokens, labels):
    """The sums over the documents."""
    total, gradients = 0, {}
    parts = (x.split(LENGTHS, dim=1) for x in (tokens, labels))
    for document in zip(*parts, strict=True):
        loss, found = loss_and_gradients(lm, *document)
        total += loss
        for name, gradient in found.items():
            gradients[name] = gradients.get(name, 0) + gradient
    return total, gradients


def apart(path):
    """What keeps documents apart: a blocking mask, or the bounds of packed documents."""
    if path == "mask":
        document = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
        same = document.unsqueeze(0) == document.unsqueeze(1)
        return {"mask": ~same.tril()[None, None]}
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0, dtype=torch.int32)
    longest = max(LENGTHS)
    return {
        "packed": PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=bounds,
            cu_seqlens_kv=bounds,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
        )
    }


@pytest.mark.parametrize("config", [dense, mice])
@pytest.mark.parametrize("geometry", ["lorentz", "euclidean"])
@pytest.mark.parametrize("path", ["mask", "thd"])
@pytest.mark.parametrize("recompute", [{}, {"recompute_granularity": "selective"}])
def test_packed_documents_equal_each_alone(config, geometry, path, recompute):
    if config is mice:
        recompute = recompute | {"moe_router_dtype": "fp64", "moe_router_topk": 4}
    made = config(torch.float64, helm={"geometry": geometry}, **recompute)
    lm = perturb(model(made), size=0.3)
    generator = torch.Generator().manual_seed(1)
    tokens, labels = torch.randint(VOCABULARY, (2, 1, sum(LENGTHS)), generator=generator)
    expected_loss, expected = documents_alone(lm, tokens, labels)
    # The documents must matter to each other where nothing keeps them apart.
    assert worst_error(loss_and_gradients(lm, tokens, labels)[1], expected) > 1e-2

    loss, gradients = loss_and_gradients(lm, tokens, labels, **apart(path))
    assert loss.item() == pytest.approx(expected_loss.item(), rel=PRECISION[path])
    assert worst_error(gradients, expected) < PRECISION[path]


def worst_error(gradients, expected):
    """The largest difference of a gradient from the expected, in units of its largest entry + 1.

    Of scalars the gradient is a long sum of terms of both signs, hence the 1.
    """
    assert gradients.keys() == expected.keys()
    scales = {name: gradient.abs().max() for name, gradient in expected.items()}
    assert min(scales.values()) > 0
    return max(
        (gradients[name] - expected[name]).abs().max() / (scales[name] + 1) for name in scales
    )
