import gzip

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from helm_megatron.data.errors import DataError
from helm_megatron.data.tokenizer_training import MAX_LINE_BYTES, train_tokenizer


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request, corpus, tmp_path_factory, megatron_tokenizer):
    """Megatron's tokenizer on a model of each type."""
    prefix = tmp_path_factory.mktemp("model") / "tokenizer"
    train_tokenizer([corpus], prefix, 600, request.param)
    return megatron_tokenizer("SentencePieceTokenizer", f"{prefix}.model")


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")))
@example(text="  leading, doubled  and trailing  ")
@example(text="\r\n\t\0\n\n \u2585 </s> <unk> \ufb01 e\u0301 \U0001f642")
def test_decoding_gives_the_text_back(tokenizer, text):
    ids = tokenizer.tokenize(text)
    assert tokenizer.detokenize(ids) == text
    assert tokenizer.unk not in ids and tokenizer.eod not in ids


def test_vocabulary_and_special_ids(tokenizer):
    assert tokenizer.vocab_size == 600
    assert [tokenizer.vocab[i] for i in (tokenizer.unk, tokenizer.bos, tokenizer.eod)] == [
        "<unk>",
        "<s>",
        "</s>",
    ]


def test_training_is_reproducible_and_reads_text_and_gzip(texts, tmp_path):
    lines = [line for text in texts for line in text.split("\n") if "\r" not in line]
    content = "\n".join(lines).encode()
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(content))
    counts = train_tokenizer([tmp_path / "a.txt"], tmp_path / "a", 500)
    assert counts == train_tokenizer([tmp_path / "b.txt.gz"], tmp_path / "b", 500)
    assert counts.used == sum(bool(line.strip()) for line in lines)
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()


def test_dropped_lines_are_counted_and_reported(run_tool, texts, tmp_path):
    path = tmp_path / "corpus.txt"
    odd = ["x" * (MAX_LINE_BYTES + 1), "a \u2585 b", "c \u2585 d"]
    path.write_text("\n".join([*odd, *texts]), encoding="utf-8")
    flags = ["--input", path, "--vocab-size", 500, "--output-prefix", tmp_path / "t"]
    done = run_tool("train_tokenizer.py", *flags)
    assert done.returncode == 0, done.stderr
    assert "warning: 1 lines longer than 1,048,576 bytes" in done.stderr
    assert "warning: 2 lines with U+2585" in done.stderr
    assert (tmp_path / "t.model").exists()


@pytest.mark.parametrize(
    ("name", "content", "vocab_size", "message"),
    [
        ("corpus.jsonl", '{"text": "some words"}\n', 2000, "--vocab-size 2000 does not fit"),
        ("corpus.jsonl", '{"text": "some words"}\n', 20, "--vocab-size 20 does not fit"),
        ("corpus.jsonl", '{"text": "a"}\n{"t": "a"}\n', 300, "corpus.jsonl:2: no key 'text'"),
        ("corpus.txt", "\n", 300, "corpus.txt: no text to train"),
    ],
)
def test_errors_leave_nothing(tmp_path, name, content, vocab_size, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        train_tokenizer([path], tmp_path / "tokenizer", vocab_size)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_leaves_nothing(corpus, tmp_path, small_disk):
    with small_disk(1000), pytest.raises(DataError, match="free some space"):
        train_tokenizer([corpus], tmp_path / "tokenizer", 600)
    assert not list(tmp_path.iterdir())
