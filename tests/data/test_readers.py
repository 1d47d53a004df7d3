import gzip
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helm_megatron.data.errors import DataError
from helm_megatron.data.readers import LineBatch, check_inputs, parse_documents, read_batches


@given(
    st.lists(st.text("ab \u00e9", max_size=9), min_size=1),
    st.integers(1, 40),
    st.sampled_from(["", ".gz"]),
)
def test_batches_hold_every_line_with_its_number(texts, batch_bytes, suffix):
    content = "\n".join(texts).encode()
    with TemporaryDirectory() as folder:
        path = Path(folder, f"file.jsonl{suffix}")
        path.write_bytes(gzip.compress(content) if suffix else content)
        batches = list(read_batches([path, path], batch_bytes))
    lines = [pair for batch in batches for pair in enumerate(batch.lines, start=batch.first_line)]
    expected = list(enumerate(content.splitlines(keepends=True), start=1))
    assert lines == expected * 2
    assert all(sum(map(len, batch.lines[:-1])) < batch_bytes for batch in batches)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', "not valid JSON"),
        (b'["text"]', "expected a JSON object"),
        (b'{"other": 1}', "no key 'text' (keys here: other)"),
        (b'{"text": 3}', "'text' is int"),
        (b'{"text": null}', "'text' is NoneType"),
        (b'{"text": "\xff"}', "not valid UTF-8"),
        (b'{"text": "\\ud800"}', "unpaired surrogate"),
    ],
)
def test_bad_lines_are_named(line, message):
    batch = LineBatch("corpus.jsonl", 7, [b'{"text": "fine"}\n', b"\n", line])
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        parse_documents(batch, ["text"])
    assert str(caught.value).startswith("corpus.jsonl:9: ")


def test_texts_come_in_the_order_of_the_keys():
    batch = LineBatch("c", 1, [b'{"a": "1", "b": "2"}\n', b" \n", b'{"b": "4", "a": "3"}'])
    assert parse_documents(batch, ["b", "a"]) == [["2", "1"], ["4", "3"]]


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"{}\n" + data])
def test_damaged_gzip_is_named(tmp_path, damage):
    path = tmp_path / "corpus.jsonl.gz"
    path.write_bytes(damage(gzip.compress(b'{"text": "a"}\n' * 1000)))
    with pytest.raises(DataError, match=r"corpus.jsonl.gz: damaged gzip file"):
        list(read_batches([path]))


def test_missing_input_is_named(tmp_path):
    present = tmp_path / "a"
    present.touch()
    check_inputs([present])
    with pytest.raises(DataError, match="b: no such file"):
        check_inputs([present, tmp_path / "b"])
