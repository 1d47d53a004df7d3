import filecmp
import json
from pathlib import Path

import numpy as np
import pytest

from helm_megatron.data import indexed
from helm_megatron.data import merge as module
from helm_megatron.data.errors import DataError
from helm_megatron.data.indexed import paths_of
from helm_megatron.data.inputs import find_sources
from helm_megatron.data.merge import merge
from helm_megatron.data.pool import TokenizerSpec
from helm_megatron.data.preprocess import Options, preprocess
from helm_megatron.data.verification import problems
from tests.data.test_entropy import write


@pytest.fixture(scope="module")
def parts(corpus, sentencepiece_model, tmp_path_factory):
    """Prefixes of the first and second half of the corpus, and of the whole."""
    folder = tmp_path_factory.mktemp("parts")
    lines = [line for line in corpus.read_text().split("\n") if line]
    spec = TokenizerSpec("SentencePieceTokenizer", sentencepiece_model, append_eod=True)
    for name, part in {"a": lines[:300], "b": lines[300:], "whole": lines}.items():
        (folder / f"{name}.jsonl").write_text("\n".join(part))
        sources = find_sources([folder / f"{name}.jsonl"])
        preprocess(sources, folder / name, spec, Options(max_bad_records=1))
    return [str(folder / f"{name}_text_document") for name in ("a", "b", "whole")]


def test_merged_is_what_all_documents_give(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 7)
    monkeypatch.setattr(indexed, "CHUNK", 7)
    *halves, whole = parts
    assert merge(halves, tmp_path / "out") == 1007
    for ours, expected in zip(paths_of(tmp_path / "out"), paths_of(whole), strict=True):
        assert filecmp.cmp(ours, expected, shallow=False)
    assert list(problems(tmp_path / "out")) == []
    sidecar = json.loads((tmp_path / "out.json").read_text())
    assert sidecar["counts"] == json.loads(Path(f"{whole}.json").read_text())["counts"]
    assert [source["path"][-7:] for source in sidecar["sources"]] == ["a.jsonl", "b.jsonl"]


def test_documents_of_several_sequences(tmp_path):
    a = write(tmp_path / "a", [[1, 2], [3]])
    data, index = paths_of(tmp_path / "b")
    np.array([4, 5, 6, 7], np.uint16).tofile(data)
    with index.open("wb") as stream:
        lengths, bounds = np.array([1, 1, 2]), np.array([0, 2, 2, 3])
        indexed.write_index(
            stream, np.dtype(np.uint16), lambda: iter([lengths]), lambda: iter([bounds])
        )
    merge([a, str(tmp_path / "b"), a], tmp_path / "out")
    made = indexed.read_index(tmp_path / "out.idx")
    assert made.lengths.tolist() == [2, 1, 1, 1, 2, 2, 1]
    assert made.bounds.tolist() == [0, 1, 2, 4, 4, 5, 6, 7]
    assert not (tmp_path / "out.json").exists()
    assert list(problems(tmp_path / "out")) == []


def test_what_cannot_be_merged(parts, tmp_path):
    a = write(tmp_path / "a", [[1, 2], [3]])
    wide = write(tmp_path / "wide", [[1, 2], [3]], np.int32)
    damaged = write(tmp_path / "damaged", [[1, 2], [3]])
    paths_of(damaged)[0].write_bytes(b"12")
    before = sorted(tmp_path.iterdir())
    for prefixes, message in [
        ([a, wide], "wide.idx: holds int32, but .*a.idx holds uint16"),
        ([a, damaged], "damaged.bin: has 2 bytes, not 6"),
        ([a, str(tmp_path / "gone")], "gone.bin: no such file"),
        ([a, parts[0]], "a: has no sidecar while others have"),
    ]:
        with pytest.raises(DataError, match=message):
            merge(prefixes, tmp_path / "out")
    with pytest.raises(DataError, match="--overwrite"):
        merge([a, a], tmp_path / "wide")
    assert sorted(tmp_path.iterdir()) == before


def test_another_tokenizer(parts, corpus, huggingface_model, tmp_path):
    spec = TokenizerSpec("HuggingFaceTokenizer", huggingface_model, append_eod=True)
    preprocess(find_sources([corpus]), tmp_path / "hf", spec, Options(max_bad_records=1))
    with pytest.raises(DataError, match="hf_text_document: was made with another tokenizer than"):
        merge([parts[0], str(tmp_path / "hf_text_document")], tmp_path / "out")


def test_tool(run_tool, tmp_path):
    (tmp_path / "in").mkdir()
    for name in "ba":
        write(tmp_path / "in" / name, [[1]])
    flags = "--input", tmp_path / "in", "--output-prefix", tmp_path / "out" / "all"
    done = run_tool("merge_datasets.py", *flags)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/out/all: 2 documents of 2 datasets\n")
    failed = run_tool("merge_datasets.py", *flags)
    assert failed.returncode == 1 and "pass --overwrite" in failed.stderr
