"""The index cache is of the data that is there; files that end too early are errors in one line."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from helm_megatron.data.errors import DataError
from helm_megatron.data.training.batch import _next, with_the_rest
from helm_megatron.data.training.dataset import Dataset, DatasetConfig
from tests.data.test_entropy import write
from tests.data.test_parts import RUN


@pytest.fixture
def build(megatron_tokenizer, sentencepiece_model):
    """Build the training dataset of a prefix, Megatron's own or with our cache."""
    tokenizer = megatron_tokenizer("SentencePieceTokenizer", sentencepiece_model)

    def of(prefix, kind=Dataset, **changes):
        config = (DatasetConfig if kind is Dataset else GPTDatasetConfig)(
            random_seed=1,
            sequence_length=8,
            blend=([str(prefix)], None),
            split="100,0,0",
            tokenizer=tokenizer,
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            **changes,
        )
        return BlendedMegatronDatasetBuilder(kind, [50, 0, 0], lambda: True, config).build()[0]

    return of


def samples(dataset):
    return [dataset[i]["tokens"].tolist() for i in range(len(dataset))]


def documents(seed, longest=30):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 500, rng.integers(1, longest)) for _ in range(40)]


@pytest.mark.parametrize("folder", [None, "cache"])
def test_other_data_under_the_same_name_is_indexed_anew(build, tmp_path, folder):
    changes = {} if folder is None else {"path_to_cache": str(tmp_path / folder)}
    prefix = write(tmp_path / "a", documents(1))
    first = samples(build(prefix, **changes))
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert len(files) == 3
    assert samples(build(prefix, **changes)) == first
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    write(prefix, documents(2, longest=90))
    other = samples(build(prefix, **changes))
    assert other != first and len(set(tmp_path.rglob("*.npy"))) == 6
    assert other == samples(build(prefix, GPTDataset, path_to_cache=str(tmp_path / "fresh")))


@pytest.mark.parametrize("kind", ["document", "sample", "shuffle"])
@pytest.mark.parametrize("kept", [0, 40, 0.9])
def test_a_file_of_the_cache_that_was_cut_off_is_made_anew(build, tmp_path, capsys, kind, kept):
    prefix = write(tmp_path / "a", documents(1))
    first = samples(build(prefix))
    [path] = tmp_path.rglob(f"*-{kind}_index.npy")
    whole = path.read_bytes()
    os.truncate(path, kept if kept == 0 or kept > 1 else int(kept * len(whole)))
    assert samples(build(prefix)) == first and path.read_bytes() == whole
    assert f"{path.parent}: the index cache is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("mapped", [True, False])
def test_tokens_cut_off_while_training(build, tmp_path, mapped):
    prefix = write(tmp_path / "a", documents(1))
    dataset = build(prefix, mmap_bin_files=mapped)
    before = samples(dataset)
    data = Path(f"{prefix}.bin")
    size = data.stat().st_size
    whole = data.read_bytes()
    os.truncate(data, size // 2)
    loader = torch.utils.data.DataLoader(dataset, batch_size=1, num_workers=1)
    batches, seen = iter(loader), []
    with pytest.raises(DataError, match=f"a.bin: has {size // 2:,} bytes, .*cut off") as refusal:
        while True:
            seen += _next(batches)["tokens"].tolist()
    assert seen == before[: len(seen)]
    assert "\n" not in str(refusal.value) and str(refusal.value).startswith(str(data))
    data.write_bytes(whole)
    assert samples(build(prefix, mmap_bin_files=mapped)) == before


def test_more_samples_than_megatron_counts_after_a_change_of_batch():
    import argparse

    run = argparse.Namespace(**RUN | {"eval_interval": 2}, iteration=4)
    run.consumed_train_samples = run.consumed_valid_samples = 0
    counted = [20, 12, 2]  # 10 iterations of 2, 6 evaluations of 2
    assert with_the_rest(run, counted) == counted
    run.consumed_train_samples, run.consumed_valid_samples = 8, 4
    assert with_the_rest(run, counted) == counted
    run.consumed_train_samples, run.consumed_valid_samples = 4 * 16, 2 * 16
    assert with_the_rest(run, counted) == [4 * 16 + 6 * 2, 2 * 16 + 4 * 2, 2]
    assert with_the_rest(run, [20, None, 2])[1] is None
    run.iteration, run.consumed_train_samples, run.consumed_valid_samples = 10, 20, 12
    assert with_the_rest(run, counted) == [21, 14, 2]
