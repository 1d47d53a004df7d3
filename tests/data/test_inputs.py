import bz2
import gzip
import json
import lzma
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from helm_megatron.data.errors import DataError
from helm_megatron.data.inputs import TextSource, find_sources
from helm_megatron.data.readers import Batch, Position, parse_batch, read_batches

TEXTS = ["one", "two\nlines", "日本語 🙂", "", "  spaces ", "x" * 5000] * 20


def zstd(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def jsonl(texts) -> bytes:
    return "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts).encode()


def documents(batches, keys=("text",)):
    return [text for batch in batches for (text,) in parse_batch(batch, keys).documents]


def write(folder: Path, kind: str) -> TextSource:
    """The texts as one kind of input."""
    table = pyarrow.table({"id": range(len(TEXTS)), "text": TEXTS})
    if kind == "parquet":
        parquet.write_table(table, folder / "a.parquet", row_group_size=50)
    elif kind == "large":
        large = table.set_column(1, "text", table["text"].cast(pyarrow.large_string()))
        parquet.write_table(large, folder / "a.parquet", use_dictionary=False)
    elif kind == "disk":
        datasets.Dataset(table).save_to_disk(folder / "saved", num_shards=3)
        return find_sources([folder / "saved"])[0]
    elif kind == "hub":
        (folder / "a.jsonl").write_bytes(jsonl(TEXTS))
        return TextSource(str(folder), "hub", split="train")
    else:
        (folder / f"a.jsonl{kind}").write_bytes(COMPRESS[kind](jsonl(TEXTS)))
    return find_sources([folder])[0]


@pytest.mark.parametrize("kind", [*COMPRESS, "parquet", "large", "disk", "hub"])
def test_every_kind_of_input_gives_the_documents_and_goes_on_anywhere(tmp_path, kind):
    source = write(tmp_path, kind)
    batches = list(read_batches([source, source], batch_bytes=20_000))
    assert documents(batches) == TEXTS * 2
    assert len(batches) > 6
    for number, batch in enumerate(batches):
        rest = documents(read_batches([source, source], start=batch.end, batch_bytes=9_000))
        assert rest == documents(batches[number + 1 :])


@given(
    st.lists(st.text("ab \r\u00e9", max_size=9), min_size=1),
    st.integers(1, 40),
    st.sampled_from(list(COMPRESS)),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_lines_and_their_numbers(texts, batch_bytes, suffix, newline_at_end):
    content = ("\n".join(texts) + "\n" * newline_at_end).encode()
    with TemporaryDirectory() as folder:
        path = Path(folder, f"file.txt{suffix}")
        path.write_bytes(COMPRESS[suffix](content))
        batches = list(read_batches(find_sources([path]), batch_bytes=batch_bytes))
    kept = [text.removesuffix("\r") for text in texts if text.strip(" \r")]
    assert documents(batches) == kept
    assert b"".join(batch.content for batch in batches) == content
    line = 1
    for batch in batches:
        assert batch.first == line
        line += batch.content.count(b"\n")


@given(st.lists(st.sampled_from(["a", "b c", " ", "", "\r"])), st.integers(1, 12))
@settings(deadline=None)
def test_paragraphs(lines, batch_bytes):
    content = "\n".join(lines)
    with TemporaryDirectory() as folder:
        path = Path(folder, "file.txt")
        path.write_text(content, newline="")
        batches = list(
            read_batches(find_sources([path]), ("text",), "paragraph", batch_bytes=batch_bytes)
        )
    expected = re.split(r"\n(?:[ \r]*\n)+", "\n" + content + "\n\n")
    assert documents(batches) == [part.strip("\n") for part in expected if part.strip()]


def test_whole_files_as_documents(tmp_path):
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text(f"{name}\n\nend\n")
    sources = find_sources([tmp_path])
    batches = list(read_batches(sources, ("text",), "document"))
    assert documents(batches) == ["a.txt\n\nend\n", "b.txt\n\nend\n"]
    assert documents(read_batches(sources, ("text",), "document", batches[0].end)) == [
        "b.txt\n\nend\n"
    ]


def test_folders_and_globs(tmp_path):
    for name in ("b.jsonl", "a.txt.gz", "c/d.parquet", "c/notes.md", "c/x.parquet.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def found(*inputs):
        return [str(Path(s.path).relative_to(tmp_path)) for s in find_sources(inputs)]

    assert found(tmp_path) == ["a.txt.gz", "b.jsonl", "c/d.parquet"]
    assert found(f"{tmp_path}/*.jsonl", tmp_path / "c") == ["b.jsonl", "c/d.parquet"]
    assert found(f"{tmp_path}/**/*.parquet") == ["c/d.parquet"]
    for name, message in [
        ("gone.jsonl", "gone.jsonl: no such file"),
        ("*.csv", r"\*.csv: no file matches"),
        ("c/notes.md", "notes.md: the suffix does not tell the format"),
        ("c/x.parquet.gz", "suffix does not tell"),
    ]:
        with pytest.raises(DataError, match=message):
            find_sources([tmp_path / name])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no file with a known suffix"):
        find_sources([tmp_path / "empty"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'["text"]', "expected a JSON object"),
        (b'{"other": 1}', "no key 'text' (keys here: other)"),
        (b'{"text": 3}', "'text' is int"),
        (b'{"text": null}', "'text' is null"),
        (b'{"text": "\xff"}', "not valid UTF-8"),
        (b'{"text": "\\ud800"}', "unpaired surrogate"),
    ],
)
def test_bad_lines_are_named_and_left_out(line, message):
    content = b'{"text": "fine"}\n\n' + line + b'\n{"text": ""}\n'
    parsed = parse_batch(Batch("jsonl", "c.jsonl", 7, content, 0, Position(), 0), ["text"])
    assert parsed.documents == [["fine"], [""]]
    assert len(parsed.bad) == 1 and parsed.bad[0].startswith("c.jsonl:9: ")
    assert message in parsed.bad[0]
    assert parsed.empty == ["c.jsonl:10: 'text' is empty"]


def test_bad_rows_are_named_and_left_out():
    content = [[b"a", None, b"\xff", b"d"], [b"1", b"2", b"3", b""]]
    parsed = parse_batch(Batch("rows", "c", 5, content, 0, Position(), 0), ["x", "y"])
    assert parsed.documents == [["a", "1"], ["d", ""]]
    assert parsed.bad == ["c:row 6: 'x' is null", "c:row 7: not valid UTF-8 at byte 0"]
    assert parsed.empty == ["c:row 8: 'y' is empty"]


def test_texts_come_in_the_order_of_the_keys():
    content = b'{"a": "1", "b": "2"}\n \n{"b": "4", "a": "3"}'
    batch = Batch("jsonl", "c", 1, content, 0, Position(), 0)
    assert parse_batch(batch, ["b", "a"]).documents == [["2", "1"], ["4", "3"]]


@pytest.mark.parametrize("suffix", [suffix for suffix in COMPRESS if suffix])
@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"{}\n" + data])
def test_damaged_compression_is_named(tmp_path, suffix, damage):
    path = tmp_path / f"corpus.jsonl{suffix}"
    path.write_bytes(damage(COMPRESS[suffix](b'{"text": "a"}\n' * 1000)))
    with pytest.raises(DataError, match=rf"corpus.jsonl{suffix}: damaged {suffix[1:]} file"):
        list(read_batches(find_sources([path])))


def test_damaged_and_unfit_tables_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": [1], "id": ["a"]}), path)
    with pytest.raises(DataError, match="a.parquet: column 'text' holds int64, not text"):
        list(read_batches(find_sources([path])))
    with pytest.raises(DataError, match=r"no column 'body' \(columns: text, id\)"):
        list(read_batches(find_sources([path]), ["body"]))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="a.parquet: cannot be read as Parquet"):
        list(read_batches(find_sources([path])))
    saved = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a"]})})
    saved.save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="pass --dataset-split, one of train"):
        list(read_batches(find_sources([tmp_path / "saved"])))
    assert documents(read_batches(find_sources([tmp_path / "saved"], "train"))) == ["a"]
    with pytest.raises(DataError, match="nowhere: cannot be read as a dataset"):
        list(read_batches([TextSource(str(tmp_path / "nowhere"), "hub", split="train")]))


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("helm_megatron.data.lines.MAX_DOCUMENT_BYTES", 1000)
    path = tmp_path / "a.txt"
    path.write_text("short\n" + "x" * 3000)
    with pytest.raises(DataError, match="a.txt:2: a line of more than 1,000 bytes"):
        list(read_batches(find_sources([path]), batch_bytes=100))
