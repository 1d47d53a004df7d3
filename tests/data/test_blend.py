import argparse
import json

import pytest

from helm_megatron.data.errors import DataError
from helm_megatron.data.training.blend import BY_SPLIT, IN_ONE, parse_blend, prefixes_of


def flags(**given) -> argparse.Namespace:
    return argparse.Namespace(**dict.fromkeys((*IN_ONE, *BY_SPLIT)) | given)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder, now the working directory, with datasets a, b and c."""
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        (tmp_path / f"{name}.bin").touch()
        (tmp_path / f"{name}.idx").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("text", "prefixes"),
    [("a\n", "a"), ("a\nb\nc", "abc"), ("0.3 a\n0.7 b\n", "ab"), ("1 a 2e3 b\n3\tc", "abc")],
)
def test_blend_files(data, text, prefixes):
    (data / "blend").write_text(text)
    assert prefixes_of(flags(data_args_path="blend")) == list(prefixes)
    assert prefixes_of(flags(data_path=text.split())) == list(prefixes)
    by_split = {"train": text, "valid": ["a"], "test": ["1", "b"]}
    (data / "blend").write_text(json.dumps(by_split))
    assert prefixes_of(flags(per_split_data_args_path="blend")) == [*prefixes, "a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no dataset"),
        ("1 a b", "expected a weight before b"),
        ("1 a 2", "expected a dataset after weight 2"),
        ("1 2 a b", "expected a dataset after weight 1"),
        ("a 1 b", "a has no weight, but there is 1; give all"),
        ("-1 a", "weight -1 must be a positive number"),
        ("0 a", "weight 0 must be"),
        ("inf a", "weight inf must be"),
        ("nan a", "weight nan must be"),
    ],
)
def test_bad_blends(text, message):
    with pytest.raises(DataError, match=f"here: .*{message}"):
        parse_blend(text.split(), "here")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "--data-path is missing"),
        ({"data_path": ["a"], "data_args_path": "blend"}, "--data-path and --data-args-path: pass"),
        ({"data_path": ["a"], "valid_data_path": ["b"]}, "--data-path and --valid-data-path: pass"),
        ({"data_path": ["1", "a", "1", "x"]}, "--data-path x: there is no x.bin"),
        ({"train_data_path": ["a"], "test_data_path": ["x"]}, "there is no x.bin"),
        ({"data_args_path": "gone"}, "--data-args-path gone: cannot be read"),
        ({"data_args_path": "blend"}, "there is no #.bin"),
        ({"per_split_data_args_path": "blend"}, "not valid JSON"),
        ({"per_split_data_args_path": "list"}, "'train' must be a list of strings"),
        ({"per_split_data_args_path": "gone"}, "cannot be read"),
    ],
)
def test_bad_flags(data, given, message):
    (data / "blend").write_text("# comment\na\n")
    (data / "list").write_text("[]")
    with pytest.raises(DataError, match=message) as caught:
        prefixes_of(flags(**given))
    assert "\n" not in str(caught.value)
