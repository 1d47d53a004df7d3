"""Damaged files end in one line, or are read; never in a traceback.

    pytest tests/fuzz --fuzz-examples 10000

tries so many of each kind, at random; without it 200, the same ones each time.
"""

import json

import pytest
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


@st.composite
def altered(draw, content: bytes):
    """Valid JSON with one value that is something else, or gone."""
    value = json.loads(content)
    parent, key = None, None
    here = value
    while isinstance(here, dict | list) and here and (parent is None or draw(st.booleans())):
        parent, key = here, draw(st.sampled_from(list(here) if isinstance(here, dict) else [0]))
        here = parent[key]
    if parent is None:
        return json.dumps(draw(st.sampled_from(ODD))).encode()
    if draw(st.booleans()):
        parent[key] = draw(st.sampled_from(ODD))
    else:
        del parent[key]
    return json.dumps(value).encode()


@pytest.mark.parametrize("kind", kinds.ALL, ids=lambda kind: kind.__name__)
def test_damaged_files_end_in_one_line(kind, tmp_path, request):
    path, read = kind(tmp_path)
    read()
    content = path.read_bytes()
    examples = request.config.getoption("--fuzz-examples")
    changes = damaged(content)
    if path.suffix == ".json":
        changes |= altered(content)

    @settings(
        max_examples=examples or 200,
        derandomize=not examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(changes)
    def holds(changed):
        path.unlink()  # it may be mapped
        path.write_bytes(changed)
        try:
            read()
        except HelmError as error:
            assert str(error) and "\n" not in str(error)

    holds()
