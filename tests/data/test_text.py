"""Text as it comes: what is text is read right, what is not is named, nothing else is read."""

import codecs
import gzip
import io
import json
import os
import tarfile
import zipfile

import pyarrow
import pytest
from pyarrow import parquet

from helm_megatron.data.errors import DataError
from helm_megatron.data.inputs import find_sources
from helm_megatron.data.readers import parse_batch, read_batches

LINES = ["naïve café", "日本語 🙂", "plain"]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]
MARKED_LITTLE = codecs.BOM_UTF16_LE + "\n".join(LINES).encode("utf-16-le")
MARKED_BIG = codecs.BOM_UTF16_BE + "\n".join(LINES).encode("utf-16-be")


def read(*paths, keys=("text",), sample_by="line", start=None, batch_bytes=1 << 19):
    begin = {} if start is None else {"start": start}
    batches = list(
        read_batches(find_sources(paths), keys, sample_by, batch_bytes=batch_bytes, **begin)
    )
    parsed = [parse_batch(batch, keys) for batch in batches]
    texts = [text for part in parsed for (text,) in part.documents]
    return texts, [line for part in parsed for line in part.bad], batches


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_encodings_and_their_marks(tmp_path, encoding, newline, suffix):
    pack = gzip.compress if suffix else bytes
    plain, lines = tmp_path / f"a.txt{suffix}", tmp_path / f"a.jsonl{suffix}"
    plain.write_bytes(pack(newline.join(LINES).encode(encoding)))
    objects = newline.join(json.dumps({"text": text}, ensure_ascii=False) for text in LINES)
    lines.write_bytes(pack(objects.encode(encoding)))
    for path in (plain, lines):
        texts, bad, batches = read(path, batch_bytes=8)
        assert (texts, bad) == (LINES, []) and len(batches) > 1
        rest, bad, _ = read(path, batch_bytes=8, start=batches[0].end)
        assert texts[-len(rest) :] == rest and not bad
    for sample_by in ("paragraph", "document"):
        (text,), bad, _ = read(plain, sample_by=sample_by)
        assert text.splitlines() == LINES and not bad


@pytest.mark.parametrize("data", [MARKED_LITTLE, MARKED_BIG])
def test_both_orders_of_bytes(tmp_path, data):
    (tmp_path / "a.txt").write_bytes(data)
    assert read(tmp_path / "a.txt")[0] == LINES
    (tmp_path / "a.txt").write_bytes(data + b"\0")
    with pytest.raises(DataError, match=r"a.txt: not valid UTF-16"):
        read(tmp_path / "a.txt")


def test_marks_within_joined_files_of_json(tmp_path):
    line = codecs.BOM_UTF8 + b'{"text": "a"}\n'
    (tmp_path / "a.jsonl").write_bytes(line * 3)
    assert read(tmp_path / "a.jsonl")[:2] == (["a"] * 3, [])


@pytest.mark.parametrize("sample_by", ["line", "paragraph", "document"])
def test_other_encodings_are_named_with_their_line(tmp_path, sample_by):
    path = tmp_path / "a.txt"
    line = 1 if sample_by == "document" else 3
    before = b"fine\n\n" if line == 3 else b""
    for data, message in [
        ("fine\n\ncafé".encode("latin-1"), "not valid UTF-8"),
        (before + "wide".encode("utf-16-le"), "every second byte is NUL: UTF-16"),
    ]:
        path.write_bytes(data)
        _, [bad], _ = read(path, sample_by=sample_by)
        assert bad.startswith(f"{path}:{line}: ") and message in bad


def test_a_nul_is_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\0b\n\0\n\0\0 c")
    assert read(tmp_path / "a.txt")[:2] == (["a\0b", "\0", "\0\0 c"], [])


def tarred(data):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo("a.jsonl")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def zipped(data):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.jsonl", data)
    return out.getvalue()


@pytest.mark.parametrize(
    ("pack", "kind"),
    [(tarred, "a tar archive"), (zipped, "a zip archive"), (gzip.compress, "gzip data")],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".txt", ".jsonl.gz"])
def test_archives_under_a_name_of_text(tmp_path, pack, kind, suffix):
    data = pack(b'{"text": "a"}\n' * 500)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    with pytest.raises(DataError, match=f"a{suffix}: holds {kind}, not text"):
        read(path)


@pytest.mark.parametrize("name", ["a.jsonl.gz.gz", "a.tar.gz", "a.zip", "a.jsonl.zip", "a.tgz"])
def test_archives_by_name(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=f"{name}: the suffix does not tell the format"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps([{"text": "a"}, {"text": "b"}], indent=2), r"a JSON array, .*jq -c '\.\[\]'"),
        ('[{"text": "a"},\n{"text": "b"}]', "a JSON array"),
        (json.dumps({"text": "a", "more": [1]}, indent=1), r"JSON over several lines, .*jq -c \."),
        ('\n{"text": "a",\n "id": 1}', "JSON over several lines"),
        ("\ufeff[\n", "a JSON array"),
    ],
)
def test_json_that_is_not_in_lines_is_called_what_it_is(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=f"a.json: {message}"):
        read(tmp_path / "a.json")


def test_bad_lines_of_json_are_only_that(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\n{"text": "b"}\n[1]\n[{"text": "c"}]\n')
    texts, bad, _ = read(path)
    assert texts == ["b"] and [line.split(": ")[0] for line in bad] == [
        f"{path}:{n}" for n in (1, 3, 4)
    ]
    assert "found an array; jq -c '.[]' makes lines of it" in bad[1]


def test_doubled_keys(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"text": "a", "text": "b"}\n'
        '{"id": {"text": 1}, "text": "say \\"text\\"", "more": ["text", "text"], "id": 2}\n'
    )
    texts, [bad], _ = read(path)
    assert texts == ['say "text"'] and bad == f"{path}:1: has the key 'text' more than once"


def test_doubled_columns(tmp_path):
    path = tmp_path / "a.parquet"
    columns = [pyarrow.array(["a"]), pyarrow.array(["b"])]
    parquet.write_table(pyarrow.Table.from_arrays(columns, ["text", "text"]), path)
    with pytest.raises(DataError, match="a.parquet: has 2 columns 'text'"):
        read(path)


TEXTUAL = {
    name: getattr(pyarrow, name)()
    for name in "string large_string string_view binary large_binary binary_view json_".split()
} | {
    "three bytes": pyarrow.binary(3),
    "dictionary": pyarrow.dictionary(pyarrow.int8(), pyarrow.string()),
    "dictionary of bytes": pyarrow.dictionary(pyarrow.int32(), pyarrow.binary()),
}


@pytest.mark.parametrize("kind", TEXTUAL)
def test_columns_of_every_textual_type(tmp_path, kind):
    texts, column = ["abc", "é!", "xyz"], TEXTUAL[kind]
    array = pyarrow.array([text.encode() for text in texts])
    if pyarrow.types.is_dictionary(column):
        array = pyarrow.DictionaryArray.from_arrays(
            pyarrow.array([0, 1, 2], column.index_type), array.cast(column.value_type)
        )
    elif isinstance(column, pyarrow.BaseExtensionType):
        array = pyarrow.ExtensionArray.from_storage(column, array.cast(column.storage_type))
    try:
        parquet.write_table(pyarrow.table({"text": array.cast(column)}), tmp_path / "a.parquet")
    except pyarrow.ArrowNotImplementedError as error:
        pytest.skip(f"pyarrow {pyarrow.__version__} writes no such file: {error}")
    assert read(tmp_path / "a.parquet")[:2] == (texts, [])


@pytest.mark.parametrize("values", [[["a"]], [{"a": "b"}], [1.5], [True]])
def test_other_columns_are_named(tmp_path, values):
    parquet.write_table(pyarrow.table({"text": values}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="a.parquet: column 'text' holds .*, not text"):
        read(tmp_path / "a.parquet")


def test_bytes_that_are_no_text_are_named(tmp_path):
    parquet.write_table(pyarrow.table({"text": [b"a", b"\xff"]}), tmp_path / "a.parquet")
    texts, [bad], _ = read(tmp_path / "a.parquet")
    assert texts == ["a"] and bad == f"{tmp_path}/a.parquet:row 2: not valid UTF-8 at byte 0"


def test_hidden_and_temporary_files_are_not_read_unless_named(tmp_path, capsys):
    hidden = (".a.jsonl", ".git/b.jsonl", "c/._d.jsonl", "~e.txt", "_temporary/0/f.jsonl")
    for name in (*hidden, "__MACOSX/g.txt", "notes.md", "h.tar.gz", "B.JSONL", "c/a.Txt.GZ"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    found = [str(tmp_path / name) for name in ("B.JSONL", "c/a.Txt.GZ")]
    assert [source.path for source in find_sources([tmp_path])] == found
    note = capsys.readouterr().err
    assert note.startswith(f"note: {tmp_path}: left out .a.jsonl, .git, __MACOSX,")
    assert note.count("\n") == 1 and "and 3 more" in note
    asked = [tmp_path / ".a.jsonl", tmp_path / ".git"]
    assert [source.path for source in find_sources(asked)] == [
        str(asked[0]), str(asked[1] / "b.jsonl")
    ]  # fmt: skip


def test_what_preprocessing_wrote_is_not_read_again(tmp_path):
    for name in ("a.jsonl", "a.json", "a_text_document.json", "a_text_document.idx"):
        (tmp_path / name).touch()
    assert [source.path for source in find_sources([tmp_path])] == [
        str(tmp_path / "a.json"), str(tmp_path / "a.jsonl")
    ]  # fmt: skip


def test_links_are_followed_once(tmp_path, capsys):
    data, other = tmp_path / "data", tmp_path / "other"
    for path in (data / "part" / "a.jsonl", other / "b.jsonl"):
        path.parent.mkdir(parents=True)
        path.touch()
    (data / "linked").symlink_to(other)
    (data / "again").symlink_to("part")
    (data / "part" / "up").symlink_to(data)
    (other / "back").symlink_to(data)
    found = {os.path.relpath(source.path, data) for source in find_sources([data])}
    assert found == {"part/a.jsonl", "linked/b.jsonl"}
    assert "left out again, linked/back, part/up" in capsys.readouterr().err
    (data / "gone.jsonl").symlink_to("nowhere")
    with pytest.raises(DataError, match="gone.jsonl: is no file, or a link that leads nowhere"):
        find_sources([data])


@pytest.mark.parametrize("name", ["", " "])
def test_empty_names(tmp_path, monkeypatch, run_tool, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match="--input: an empty name"):
        find_sources(["a.jsonl", name])
    flags = "--input", "a.jsonl", "--vocab-size", 300, "--output-prefix", name
    done = run_tool("train_tokenizer.py", *flags)
    assert done.returncode == 2 and "has no name to append a suffix to" in done.stderr


def test_long_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("helm_megatron.data.lines.MAX_DOCUMENT_BYTES", 1000)
    for suffix, text in ((".txt", "x" * 900), (".jsonl", json.dumps({"text": "x" * 900}))):
        path = tmp_path / f"a{suffix}"
        path.write_text(f"{text}\n{text}\n")
        assert read(path, batch_bytes=10)[0] == ["x" * 900] * 2
        path.write_text("\n" + text + "x" * 200)
        with pytest.raises(DataError, match=f"a{suffix}:2: a line of more than 1,000 bytes"):
            read(path, batch_bytes=10)
