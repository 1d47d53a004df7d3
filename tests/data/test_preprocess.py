import filecmp
import json
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

from helm_megatron.data import preprocess as module
from helm_megatron.data.encoders import TOKENIZER_TYPES, build_encoder
from helm_megatron.data.errors import DataError
from helm_megatron.data.indexed import paths_of
from helm_megatron.data.inputs import find_sources
from helm_megatron.data.pool import TokenizerSpec, encode_batch
from helm_megatron.data.preprocess import Options, output_prefix_of, preprocess

LENIENT = Options(max_bad_records=10_000)
FIXTURES = {"HuggingFaceTokenizer": "huggingface_model", "TikTokenizer": "rank_file"}


def run(inputs, output_prefix, spec, **options):
    return preprocess(find_sources(inputs), output_prefix, spec, Options(**options))


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_with_megatron(prefix, documents, vocab_size) -> None:
    """Write documents, lists of ids, one by one; an empty one has no sequence."""
    data, index = paths_of(prefix)
    builder = IndexedDatasetBuilder(str(data), dtype=DType.optimal_dtype(vocab_size))
    for ids in documents:
        builder.add_document(ids, [len(ids)] if ids else [])
    builder.finalize(str(index))


def assert_same(ours, theirs) -> None:
    for mine, expected in zip(paths_of(ours), paths_of(theirs), strict=True):
        assert filecmp.cmp(mine, expected, shallow=False), mine.name


@pytest.fixture
def tokenize(request, megatron_tokenizer, rank_encoding):
    """Return, for a tokenizer type, its model, an independent tokenizer and its eod and size."""

    def of(tokenizer_type):
        fixture = FIXTURES.get(tokenizer_type, "sentencepiece_model")
        model = request.getfixturevalue(fixture)
        if tokenizer_type == "TikTokenizer":
            size = rank_encoding.n_vocab
            return model, rank_encoding.encode_ordinary, size - 255, size
        tokenizer = megatron_tokenizer(tokenizer_type, model)
        return model, tokenizer.tokenize, tokenizer.eod, tokenizer.vocab_size

    return of


def expected_ids(text, encode, eod, append_eod) -> list[int]:
    ids = list(encode(text))
    return [*ids, eod] if ids and append_eod else ids


@pytest.mark.parametrize("append_eod", [False, True])
@pytest.mark.parametrize("tokenizer_type", TOKENIZER_TYPES)
def test_files_are_those_of_megatrons_tokenizer_and_builder(
    texts, corpus, tmp_path, tokenize, tokenizer_type, append_eod
):
    model, encode, eod, size = tokenize(tokenizer_type)
    spec = TokenizerSpec(tokenizer_type, model, append_eod)
    run([corpus], tmp_path / "ours", spec, keys=["title", "text"], workers=2, max_bad_records=9)
    for key, values in {"text": texts, "title": [text[:20] for text in texts]}.items():
        theirs = tmp_path / f"theirs_{key}"
        ids = (expected_ids(value, encode, eod, append_eod) for value in values)
        write_with_megatron(theirs, ids, size)
        assert_same(output_prefix_of(tmp_path / "ours", key), theirs)


@pytest.mark.parametrize("tokenizer_type", sorted({*FIXTURES, "SentencePieceTokenizer"}))
@given(
    documents=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1),
    append_eod=st.booleans(),
    partitions=st.integers(1, 4),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_random_unicode_documents(tokenizer_type, tokenize, documents, append_eod, partitions):
    model, encode, eod, size = tokenize(tokenizer_type)
    encoder = build_encoder(tokenizer_type, model)
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        # In this process: starting others takes seconds an example.
        patch.setattr(
            module,
            "encode_parallel",
            lambda batches, spec, keys, workers: (
                encode_batch(encoder, batch, keys, append_eod) for batch in batches
            ),
        )
        source = Path(folder, "a.jsonl")
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        spec = TokenizerSpec(tokenizer_type, model, append_eod)
        options = Options(partitions=partitions, max_bad_records=1000)
        counts = preprocess(find_sources([source]), Path(folder, "ours"), spec, options)
        # Megatron's tool deals documents to its partitions in turn, and joins these.
        ordered = [text for part in range(partitions) for text in documents[part::partitions]]
        ids = [expected_ids(text, encode, eod, append_eod) for text in ordered]
        write_with_megatron(Path(folder, "theirs"), ids, size)
        assert_same(Path(folder, "ours_text_document"), Path(folder, "theirs"))
        assert counts.documents == len(documents)
        assert counts.tokens == sum(map(len, ids))
        assert counts.empty == documents.count("")


def test_several_inputs_keep_their_order_and_batches_do_not_show(tmp_path, sentencepiece_model):
    # Several megabytes, so that several batches are in flight at once.
    texts = [f"document {i} " * 2000 for i in range(150)]
    inputs = [tmp_path / "1.jsonl", tmp_path / "2.jsonl"]
    for path, part in zip(inputs, (texts[:100], texts[100:]), strict=True):
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    spec = TokenizerSpec("SentencePieceTokenizer", sentencepiece_model)
    counts = run(inputs, tmp_path / "out", spec, workers=2)
    dataset = IndexedDataset(str(tmp_path / "out_text_document"))
    processor = sentencepiece.SentencePieceProcessor(model_file=sentencepiece_model)
    assert [processor.decode(document.tolist()) for document in dataset] == texts
    assert (counts.documents, counts.empty) == (150, 0)
    assert counts.tokens == sum(map(len, dataset))
    assert counts.bytes_read == sum(path.stat().st_size for path in inputs)


def test_megatrons_dataset_gives_every_document_back(
    texts, corpus, tmp_path, sentencepiece_model, megatron_tokenizer, gpt_datasets
):
    spec = TokenizerSpec("SentencePieceTokenizer", sentencepiece_model, append_eod=True)
    run([corpus], tmp_path / "out", spec, max_bad_records=9)
    tokenizer = megatron_tokenizer(spec.type, spec.model)
    train, valid, test = gpt_datasets(tmp_path / "out_text_document", "90,10,0", tokenizer)
    assert len(train) > len(valid) > 10 and test is None
    ids = [[*tokenizer.tokenize(text), tokenizer.eod] for text in texts if text]
    stream = np.concatenate([ids[document] for document in train.document_index])
    for number in range(len(train)):
        start = 64 * train.shuffle_index[number]
        sample = train[number]
        assert sample["tokens"].tolist() == stream[start : start + 64].tolist()
        assert sample["labels"].tolist() == stream[start + 1 : start + 65].tolist()


def test_bad_line_leaves_existing_output_alone(corpus, tmp_path, sentencepiece_model):
    prefix = tmp_path / "out"
    spec = TokenizerSpec("SentencePieceTokenizer", sentencepiece_model)
    run([corpus], prefix, spec, max_bad_records=9)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {f"out_text_document.{suffix}" for suffix in ("bin", "idx", "json")}
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a"}\n' * 1000 + "oops\n")
    with pytest.raises(DataError, match=r"bad.jsonl:1001: not valid JSON"):
        run([bad], prefix, spec, overwrite=True)
    with pytest.raises(DataError, match="--overwrite"):
        run([corpus], prefix, spec)
    bad.unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_bad_records_up_to_the_threshold_are_left_out(tmp_path, sentencepiece_model, capfd):
    source = tmp_path / "a.jsonl"
    lines = ['{"text": "a"}', "oops", '{"text": null}', '{"text": "b"}', '{"text": ""}', '{"t": 1}']
    source.write_text("\n".join(lines))
    spec = TokenizerSpec("SentencePieceTokenizer", sentencepiece_model)
    with pytest.raises(DataError, match=r"a.jsonl:\d: .*; more than the 3 allowed; --max-bad-rec"):
        run([source], tmp_path / "out", spec, max_bad_records=3)
    capfd.readouterr()
    counts = run([source], tmp_path / "out", spec, max_bad_records=4)
    assert (counts.documents, counts.bad, counts.empty) == (3, 3, 1)
    printed = capfd.readouterr().err
    for line in (2, 3, 5, 6):
        assert f"warning: {source}:{line}: " in printed
    processor = sentencepiece.SentencePieceProcessor(model_file=sentencepiece_model)
    dataset = IndexedDataset(str(tmp_path / "out_text_document"))
    assert [processor.decode(document.tolist()) for document in dataset] == ["a", "b"]
    assert dataset.document_indices.tolist() == [0, 1, 2, 2]


def test_input_without_documents(tmp_path, sentencepiece_model):
    (tmp_path / "blank.jsonl").write_text("\n\n")
    spec = TokenizerSpec("SentencePieceTokenizer", sentencepiece_model)
    with pytest.raises(DataError, match=r"blank.jsonl: no documents"):
        run([tmp_path / "blank.jsonl"], tmp_path / "out", spec)
    assert names(tmp_path) == ["blank.jsonl"]


def test_tokenizer_errors(tmp_path, corpus, texts, rank_file):
    cut = tmp_path / "cut.model"
    cut.write_bytes(b"\n".join(Path(rank_file).read_bytes().splitlines()[5:]))
    for spec, message in [
        (TokenizerSpec("SentencePieceTokenizer", str(corpus)), "not a SentencePiece model"),
        (TokenizerSpec("SentencePieceTokenizer", "nowhere.model"), "nowhere.model: no such"),
        (TokenizerSpec("HuggingFaceTokenizer", str(tmp_path)), "cannot be loaded as a tokenizer"),
        (TokenizerSpec("TikTokenizer", str(corpus)), "jsonl:1: not a line of a tiktoken rank file"),
        (TokenizerSpec("TikTokenizer", "nowhere.model"), "nowhere.model: cannot be read"),
        (TokenizerSpec("TikTokenizer", str(cut)), "ranks are missing"),
        (TokenizerSpec("GPT2BPETokenizer", "x"), "is not supported here; use one of"),
    ]:
        with pytest.raises(DataError, match=message):
            spec.build()
    with (tmp_path / "no_eos.model").open("wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=stream, vocab_size=300, eos_id=-1
        )
    model = str(tmp_path / "no_eos.model")
    assert TokenizerSpec("Llama2Tokenizer", model).build().vocab_size == 300
    with pytest.raises(DataError, match="no end-of-document token"):
        TokenizerSpec("Llama2Tokenizer", model, append_eod=True).build()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("text", "b", "text"), "--json-keys text b text: text is there twice"),
        (("a/b",), "--json-keys a/b: a / cannot be in the name of a file"),
    ],
)
def test_keys_that_name_no_files(keys, message, tmp_path, corpus, sentencepiece_model):
    spec = TokenizerSpec("SentencePieceTokenizer", sentencepiece_model, True)
    with pytest.raises(DataError, match=message):
        run([corpus], tmp_path / "out", spec, keys=keys)
    assert names(tmp_path) == []


def test_white_space_without_end_is_a_bad_record(rank_file, tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text(json.dumps({"text": " " * 4_000_000}) + '\n{"text": "fine"}\n')
    counts = run(
        [source], tmp_path / "out", TokenizerSpec("TikTokenizer", rank_file), max_bad_records=1
    )
    assert (counts.documents, counts.bad) == (1, 1)


def test_neither_tool_nor_workers_load_torch_or_megatron():
    code = (
        "import sys, helm_megatron.data.preprocess;"
        "print([m for m in ('torch', 'megatron', 'transformers', 'pyarrow') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_tool(run_tool, corpus, tmp_path, sentencepiece_model):
    flags = ["--output-prefix", tmp_path / "out", "--tokenizer-type", "SentencePieceTokenizer"]
    flags += ["--tokenizer-model", sentencepiece_model, "--append-eod", "--workers", 1]
    done = run_tool("preprocess_data.py", "--input", corpus, *flags, "--max-bad-records", 1)
    assert done.returncode == 0, done.stderr
    assert "100%" in done.stderr and "tokens/s" in done.stderr
    assert "0 bad records left out, 1 empty documents" in done.stderr
    assert names(tmp_path) == [f"out_text_document.{suffix}" for suffix in ("bin", "idx", "json")]
    failed = run_tool("preprocess_data.py", "--input", Path("gone.jsonl"), *flags)
    assert failed.returncode == 1
    assert failed.stderr.strip() == "error: gone.jsonl: no such file or folder; see --input"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "b"', "a.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"other": "b"}', "a.jsonl:2: no key 'text'"),
        ("a.jsonl", b'{"text": "\xff"}', "a.jsonl:2: not valid UTF-8"),
        ("a.jsonl", b'{"text": null}', "a.jsonl:2: 'text' is null"),
        ("a.jsonl", b'{"text": ""}', "a.jsonl:2: 'text' is empty"),
        ("a.jsonl.gz", b"", "a.jsonl.gz: damaged gz file"),
        ("a.parquet", b"", "a.parquet: cannot be read as Parquet"),
        ("a.csv", b"", "a.csv: the suffix does not tell the format"),
    ],
)
def test_tool_says_one_line_about_bad_input(run_tool, rank_file, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(b'{"text": "fine"}\n' + content)
    flags = ["--output-prefix", tmp_path / "out", "--tokenizer-type", "TikTokenizer"]
    flags += ["--tokenizer-model", rank_file, "--workers", 1]
    done = run_tool("preprocess_data.py", "--input", tmp_path / name, *flags)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    said = [line for line in re.split(r"[\r\n]+", done.stderr) if "error" in line]
    assert len(said) == 1 and said[0].startswith(f"error: {tmp_path}/{message}")
    assert names(tmp_path) == [name]
