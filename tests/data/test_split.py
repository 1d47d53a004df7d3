"""--split is read as Megatron reads it, or refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helm_megatron.data.errors import DataError
from helm_megatron.data.split import bounds_of, parse_split

WEIGHTS = st.lists(
    st.one_of(st.integers(0, 1000), st.floats(0, 1e3).map(lambda x: round(x, 3))),
    min_size=1,
    max_size=3,
).filter(lambda weights: sum(weights) > 0)


@given(WEIGHTS, st.integers(0, 10**7))
def test_parts_are_megatrons(weights, sequences):
    from megatron.core.datasets import blended_megatron_dataset_config as rules

    text = ",".join(
        f"{weight:.3f}" if isinstance(weight, float) else str(weight) for weight in weights
    )
    normalized = rules.parse_and_normalize_split(text)
    matrix = rules.convert_split_vector_to_split_matrix(normalized)
    expected = [
        edges and tuple(int(round(edge * float(sequences))) for edge in edges) for edges in matrix
    ]
    assert bounds_of(parse_split(text), sequences) == expected


@pytest.mark.parametrize("text", ["969, 30, 1", "1", "99.,.5,0", "0,100"])
def test_other_spellings(text):
    assert len(parse_split(text)) == 3


@pytest.mark.parametrize(
    "text",
    [
        *("", ",", "90,,10", "1,2,3,4", "many", "90,abc5,5", "-1,1,0", "1e2,1,0", "nan,1,0"),
        *("inf,1", "+5,1", "90;10", "90 10", "0,0,0", "0", "\u0669\u0669,1,0", "1_0,1", "1,2,3,"),
        "9" * 400,
    ],
)
def test_nonsense_is_refused(text):
    with pytest.raises(DataError, match="expected up to three weights") as refusal:
        parse_split(text)
    assert str(refusal.value).startswith(f"--split {text}:")
