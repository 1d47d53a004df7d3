"""Documents kept apart: the same training by mask or by packing, under every parallelism."""

import functools
import random

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from tests.pretrain.runs import DENSE, MICE

EOD = 126
BASE = [flag for flag in DENSE if flag != "--mock-data"]
# Per token: the losses and gradients do not depend on the size of the micro-batches.
THREE_LAYERS = ["--num-layers", 3, "--calculate-per-token-loss"]
MODELS = {"dense": [], "three-layers": THREE_LAYERS, "mice": MICE}
MASK, PACKED = "--reset-attention-mask", "--dataloader-inter-document-masking"


@pytest.fixture(scope="module")
def train(starter, tmp_path_factory):
    """Losses of some iterations on short documents, from the same weights in every layout."""
    folder = tmp_path_factory.mktemp("documents")
    write_documents(folder / "corpus")
    common = f"""
        --data-path {folder / "corpus"} --split 1,0,0 --eval-iters 0 --eod-mask-loss
        --hidden-dropout 0 --attention-dropout 0 --make-vocab-size-divisible-by 64
    """.split()

    @functools.cache
    def trained(model, *flags, processes=1):
        start = folder / model
        flags = [*common, *MODELS[model], *flags]
        if not start.exists():
            save = ["--save", start, "--train-iters", 1, "--save-interval", 1]
            starter.run(*common, *MODELS[model], *save, base=BASE)
        load = ["--load", start, "--finetune", "--no-load-optim", "--no-load-rng"]
        flags += [*load, "--train-iters", 3]
        return starter.run(*flags, processes=processes, base=BASE)

    return trained


def write_documents(prefix):
    """Megatron's dataset of runs of rising tokens; most samples hold several."""
    generator = random.Random(0)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)
    for _ in range(200):
        start, length = generator.randrange(100), generator.randrange(2, 24)
        builder.add_item(torch.tensor([*((start + i) % EOD for i in range(length)), EOD]))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")


def test_documents_matter(train):
    assert train("dense") != pytest.approx(train("dense", MASK), rel=1e-4)


@pytest.mark.parametrize("model", ["dense", "mice"])
def test_packing_equals_masking(train, model):
    assert train(model, PACKED) == pytest.approx(train(model, MASK), rel=1e-5)


def test_positions_do_not_matter(train):
    """Rotary scores depend on differences of positions only: losses equal to the log's digits."""
    got = train("dense", MASK, "--reset-position-ids")
    assert got == pytest.approx(train("dense", MASK), rel=1e-6)


@pytest.mark.parametrize(("model", "apart"), [("dense", MASK), ("mice", PACKED)])
def test_tensor_and_sequence_parallel(train, model, apart):
    layout = ["--tensor-model-parallel-size", 2, "--sequence-parallel"]
    got = train(model, apart, *layout, processes=2)
    assert got == pytest.approx(train(model, apart), rel=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_context_parallel(train, model):
    """The ranks have different numbers of tokens in the loss, divided by rank or per token."""
    got = train(model, MASK, "--context-parallel-size", 2, processes=2)
    assert got == pytest.approx(train(model, MASK), rel=1e-5)


@pytest.mark.parametrize("apart", [MASK, PACKED])
def test_inner_pipeline_stages(train, apart):
    layout = ["--pipeline-model-parallel-size", 3, "--micro-batch-size", 1]
    got = train("three-layers", apart, *layout, processes=3)
    assert got == pytest.approx(train("three-layers", MASK), rel=1e-5)
