import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from helm_megatron.data import entropy
from helm_megatron.data.entropy import SPLITS, unigram_entropy
from helm_megatron.data.errors import DataError


def write(prefix, documents, dtype=np.uint16) -> str:
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype)
    for document in documents:
        builder.add_document(document, [len(document)])
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_known_distribution(tmp_path, dtype):
    # Validation holds ids 0 to 7 equally often, training one id.
    documents = [[9, 9, 9]] * 90 + [[0, 1, 2, 3], [4, 5, 6, 7]] * 5
    prefix = write(tmp_path / "data", documents, dtype)
    assert unigram_entropy(prefix, "90,10,0") == pytest.approx(math.log(8), abs=1e-12)
    assert unigram_entropy(prefix, "90,10,0", "train") == 0


@pytest.mark.parametrize("split", ["95,5,0", "7,2,1", "1,1,1"])
def test_parts_are_megatrons(
    tmp_path, monkeypatch, split, sentencepiece_model, megatron_tokenizer, gpt_datasets
):
    rng = np.random.default_rng(1)
    documents = [rng.zipf(1.5, rng.integers(1, 50)) % 500 for _ in range(501)]
    prefix = write(tmp_path / "data", documents)
    monkeypatch.setattr(entropy, "CHUNK", 64)
    tokenizer = megatron_tokenizer("SentencePieceTokenizer", sentencepiece_model)
    for part, dataset in zip(SPLITS, gpt_datasets(prefix, split, tokenizer), strict=True):
        if dataset is None:
            continue
        counts = Counter(token for i in dataset.indices for token in documents[i].tolist())
        shares = [count / counts.total() for count in counts.values()]
        expected = -sum(share * math.log(share) for share in shares)
        assert unigram_entropy(prefix, split, part) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("100,0,0", "leaves no tokens for 'valid'"),
        ("0,0,0", "expected up to three weights"),
        ("1,2,3,4", "expected up to three weights"),
        ("many", "expected up to three weights"),
    ],
)
def test_bad_splits(tmp_path, split, message):
    prefix = write(tmp_path / "data", [[1, 2]] * 10)
    with pytest.raises(DataError, match=message):
        unigram_entropy(prefix, split)


def test_tool(run_tool, tmp_path):
    prefix = write(tmp_path / "data", [[1, 2]] * 20)
    # A process of its own: stdout is what a script reads, with nothing else on it.
    tool = Path(__file__).parents[2] / "tools" / "unigram_entropy.py"
    command = [sys.executable, tool, "--data-path", prefix, "--split", "9,1,0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{math.log(2):.4f}\n"
    failed = run_tool("unigram_entropy.py", "--data-path", tmp_path / "no", "--split", "9,1,0")
    assert failed.returncode == 1
    assert "no.bin: no such file" in failed.stderr and "Traceback" not in failed.stderr
