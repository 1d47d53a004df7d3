import random
import struct

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

from helm_megatron.data.indexed import paths_of
from helm_megatron.data.inputs import find_sources
from helm_megatron.data.pool import TokenizerSpec
from helm_megatron.data.preprocess import Options, preprocess
from helm_megatron.data.verification import problems

VOCAB_SIZE = 600
HEADER = 34


@pytest.fixture(scope="module")
def dataset(corpus, sentencepiece_model, tmp_path_factory):
    """The prefix of a small dataset: 40 documents, one of them empty."""
    folder = tmp_path_factory.mktemp("data")
    source = folder / "a.jsonl"
    lines = [line for line in corpus.read_text().split("\n") if line][:40]
    source.write_text("\n".join(lines))
    spec = TokenizerSpec("SentencePieceTokenizer", sentencepiece_model, append_eod=True)
    preprocess(find_sources([source]), folder / "a", spec, Options(max_bad_records=1))
    return folder / "a_text_document"


def mutate(rng: random.Random, data: bytes, index: bytes) -> tuple[bytes, bytes]:
    """Damage the .bin or .idx file, as disks, interrupted copies and editors do."""
    which = rng.random() < 0.7
    content = bytearray(index if which else data)
    at = rng.randrange(HEADER if which and rng.random() < 0.3 else len(content))
    kind = rng.randrange(6)
    if kind == 0:
        content[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        content[at:] = b""
    elif kind == 2:
        content[at:at] = rng.randbytes(rng.randrange(1, 9))
    elif kind == 3:
        content[at : at + rng.randrange(1, 9)] = b""
    elif kind == 4:
        size = rng.randrange(1, 65)
        content[at : at + size] = rng.choice([bytes, rng.randbytes])(size)
    else:
        other = rng.randrange(len(content) - 8)
        content[at : at + 8], content[other : other + 8] = (
            content[other : other + 8], content[at : at + 8]
        )  # fmt: skip
    return (data, bytes(content)) if which else (bytes(content), index)


def edit_index(rng: random.Random, index: bytes) -> bytes:
    """Change one number of the index to another that could be one."""
    _, sequences, bounds = struct.unpack_from("<BQQ", index, 17)
    content = bytearray(index)
    part = rng.randrange(4)
    if part == 0:
        place, form, step = HEADER + 4 * rng.randrange(sequences), "<i", 1
    elif part == 1:
        place, form, step = HEADER + 4 * sequences + 8 * rng.randrange(sequences), "<q", 2
    elif part == 2:
        place, form, step = HEADER + 12 * sequences + 8 * rng.randrange(bounds), "<q", 1
    else:
        place, form, step = rng.choice([18, 26]), "<Q", 1
    (value,) = struct.unpack_from(form, content, place)
    struct.pack_into(form, content, place, max(0, value + rng.choice([-1, 1]) * step))
    return bytes(content)


def is_whole(data: bytes, index: bytes, prefix) -> bool:
    """Whether Megatron's builder writes these very files for the documents that they hold."""
    try:
        code, sequences, bounds = struct.unpack_from("<BQQ", index, 17)
        dtype = DType.dtype_from_code(code)
        lengths = np.frombuffer(index, np.int32, sequences, HEADER)
        ends = np.frombuffer(index, np.int64, bounds, HEADER + 12 * sequences).tolist()
        tokens = np.frombuffer(data, dtype)
    except (ValueError, struct.error, OverflowError, TypeError):
        return False
    if (lengths <= 0).any() or tokens.size != lengths.sum(dtype=np.int64):
        return False
    if sorted(ends) != ends or ends[-1:] != [sequences]:
        return False
    if not np.issubdtype(dtype, np.integer) or not ((tokens >= 0) & (tokens < VOCAB_SIZE)).all():
        return False
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype)
    start = 0
    for first, last in zip(ends, ends[1:], strict=False):
        part = lengths[first:last].tolist()
        builder.add_document(tokens[start : start + sum(part)], part)
        start += sum(part)
    builder.finalize(f"{prefix}.idx")
    written = [path.read_bytes() for path in paths_of(prefix)]
    return written == [data, index]


def test_every_change_is_found_and_nothing_crashes(dataset, tmp_path):
    rng = random.Random(1)
    data, index = (path.read_bytes() for path in paths_of(dataset))
    with_sidecar, without = tmp_path / "with", tmp_path / "without"
    (tmp_path / "with.json").write_bytes(dataset.with_name(f"{dataset.name}.json").read_bytes())
    assert is_whole(data, index, tmp_path / "check")
    whole = changed = 0
    for number in range(2400):
        if number % 4:
            new_data, new_index = mutate(rng, data, index)
        else:
            new_data, new_index = data, edit_index(rng, index)
        for prefix in (with_sidecar, without):
            for path, content in zip(paths_of(prefix), (new_data, new_index), strict=True):
                path.write_bytes(content)
        differs = (new_data, new_index) != (data, index)
        assert bool(list(problems(with_sidecar))) == differs, number
        expected = is_whole(new_data, new_index, tmp_path / "check")
        assert bool(list(problems(without, VOCAB_SIZE))) != expected, number
        whole, changed = whole + expected, changed + differs
    assert changed > 2000 and 50 < whole < 800


def test_lost_and_stale_files(dataset, tmp_path):
    data, index = (path.read_bytes() for path in paths_of(dataset))
    prefix = tmp_path / "a"
    assert "a.idx: cannot be read" in "".join(problems(prefix))
    paths_of(prefix)[1].write_bytes(index)
    assert "a.bin: cannot be read" in "".join(problems(prefix))
    paths_of(prefix)[0].write_bytes(data)
    assert list(problems(prefix)) == []
    assert "not one of the vocabulary's 5" in "".join(problems(prefix, 5))
    (tmp_path / "a.json").write_text("[]")
    assert "not a sidecar" in "".join(problems(prefix))


def test_tool(run_tool, dataset, tmp_path):
    png = tmp_path / "lengths.png"
    flags = ["--data-path", dataset, "--samples", 50, "--png", png]
    done = run_tool("inspect_data.py", *flags)
    assert done.returncode == 0, done.stderr
    assert "40 documents in 39 sequences" in done.stdout
    assert "                      0             1 ##" in done.stdout
    assert "document 4: " in done.stdout and "naïve 日本語 🙂" in done.stdout
    assert done.stdout.endswith("whole: every pointer, bound and token is right\n")
    assert png.read_bytes().startswith(b"\x89PNG")


def test_tool_on_damage(run_tool, dataset, tmp_path, corpus):
    data, index = paths_of(tmp_path / "a")
    data.write_bytes(paths_of(dataset)[0].read_bytes()[:-2])
    index.write_bytes(paths_of(dataset)[1].read_bytes())
    done = run_tool("inspect_data.py", "--data-path", tmp_path / "a")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {data}: has ") and done.stderr.count("\n") == 1
    missing = run_tool("inspect_data.py", "--data-path", tmp_path / "gone")
    assert missing.returncode == 1 and "gone.bin: no such file" in missing.stderr
