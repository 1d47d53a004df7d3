"""Damaged files end in one line, or are read; never in a traceback.

    pytest tests/fuzz --fuzz-examples 10000

tries so many of each kind, at random; without it 200, the same ones each time. With `-s` it says
how many were refused, and how many read.
"""

import json
import re
import tomllib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helm_megatron.errors import HelmError
from tests.fuzz import kinds

ODD = [
    None,
    True,
    -1,
    0,
    2**70,
    1e308,
    float("nan"),
    "",
    "x",
    "../x",
    "\0",
    [],
    {},
    [[]],
    {"a": {}},
]


@st.composite
def damaged(draw, content: bytes):
    """The bytes with a few changes."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["flip", "cut", "insert", "overwrite", "drop"])):
            case "flip" if place < len(data):
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[place:]
            case "insert":
                data[place:place] = draw(st.binary(max_size=8))
            case "overwrite":
                data[place : place + 4] = draw(st.binary(min_size=4, max_size=4))
            case "drop":
                del data[place : place + draw(st.integers(1, 20))]
    return bytes(data)


def toml(value) -> str:
    """A value as TOML has it; a table in braces."""
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(key)} = {toml(each)}" for key, each in value.items())
        return f"{{{inner}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return repr(value) if isinstance(value, float) else json.dumps(value)


def toml_file(value) -> str:
    if not isinstance(value, dict):
        return toml(value)
    return "".join(f"{json.dumps(key)} = {toml(each)}\n" for key, each in value.items())


FORMATS = {".json": (json.loads, json.dumps), ".toml": (tomllib.loads, toml_file)}


@st.composite
def altered(draw, content: str, loads, dumps):
    """A valid file with one value that is something else, or gone."""
    value = loads(content)
    parent, key = None, None
    here = value
    while isinstance(here, dict | list) and here and (parent is None or draw(st.booleans())):
        parent, key = here, draw(st.sampled_from(list(here) if isinstance(here, dict) else [0]))
        here = parent[key]
    if parent is None:
        return dumps(draw(st.sampled_from(ODD))).encode()
    if draw(st.booleans()):
        parent[key] = draw(st.sampled_from(ODD))
    else:
        del parent[key]
    return dumps(value).encode()


@st.composite
def reworded(draw, content: str):
    """A text with one word or number that is another."""
    word = draw(st.sampled_from(list(re.finditer(r"[\w.]+", content))))
    other = draw(
        st.sampled_from(["", "0", "-1", "7", "1e400", "nan", "9" * 19, "x", "[0,", "\xff"])
    )
    return (content[: word.start()] + other + content[word.end() :]).encode()


def changes_of(path):
    """What may happen to a file."""
    content = path.read_bytes()
    if path.suffix in FORMATS:
        return damaged(content) | altered(content.decode(), *FORMATS[path.suffix])
    if path.suffix in (".sh", ".txt"):
        return damaged(content) | reworded(content.decode())
    return damaged(content)


def same(one, other):
    """Whether two results are the same, to the bits of their tensors."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("kind", kinds.ALL, ids=lambda kind: kind.__name__)
def test_damaged_files_end_in_one_line(kind, tmp_path, request):
    path, read = kind(tmp_path)
    whole = read()
    examples = request.config.getoption("--fuzz-examples")
    counts = {"refused": 0, "read": 0}

    @settings(
        max_examples=examples or 200,
        derandomize=not examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(changes_of(path))
    def holds(changed):
        path.unlink()  # it may be mapped
        path.write_bytes(changed)
        try:
            found = read()
        except HelmError as error:
            counts["refused"] += 1
            assert str(error) and "\n" not in str(error)
        else:
            counts["read"] += 1
            assert kind not in kinds.CHECKED or same(found, whole)

    try:
        holds()
    finally:
        print(f"{kind.__name__}: {counts}")
