"""Data that has not what a run would draw is refused before a model is built."""

import argparse
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helm_megatron.data.errors import DataError
from helm_megatron.data.training.blend import BY_SPLIT, IN_ONE
from helm_megatron.data.training.parts import check_parts, has_part
from helm_megatron.data.verification import open_whole
from tests.data.test_entropy import write
from tests.pretrain.forked import Starter
from tests.pretrain.runs import DENSE

START = DENSE.index("--mock-data")
BASE = DENSE[:START] + DENSE[DENSE.index("--tokenizer-type") :]
RUN = {
    **dict.fromkeys((*IN_ONE, *BY_SPLIT)),
    **dict.fromkeys(("split", "data_cache_path", "train_samples", "start_eval_at_iter")),
    **dict.fromkeys(("mock_data", "skip_train", "full_validation", "check_data"), False),
    "multiple_validation_sets": False,
    **{"train_iters": 10, "global_batch_size": 2, "eval_global_batch_size": 2, "eval_iters": 1},
    **{"eval_interval": 100, "seq_length": 8, "phase_transition_iterations": None},
}


@pytest.fixture
def flags(monkeypatch):
    """Arguments of a run that draws 20 samples to train, and 2 of each other part."""

    def make(**given):
        args = argparse.Namespace(**RUN | given)
        monkeypatch.setattr("megatron.training.training.get_args", lambda: args)
        return args

    return make


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder, now the working directory, with datasets of some documents."""
    monkeypatch.chdir(tmp_path)
    for name, lengths in {
        "hundred": [5] * 100,
        "three": [30, 30, 30],
        "one": [500],
        "few": [3],
        "empty": [],
        "short": [4] * 3,
    }.items():
        write(tmp_path / name, [[number % 97 for number in range(length)] for length in lengths])
    (tmp_path / "hundred").mkdir()  # as Megatron makes it for its index cache
    return tmp_path


@pytest.mark.parametrize(
    "given",
    [
        {"data_path": ["hundred"], "split": "90,5,5"},
        {"data_path": ["hundred"], "split": "100,0,0"},
        {"data_path": ["one"], "split": "1"},
        {"data_path": ["few"], "split": "100"},
        {"data_path": ["one", "hundred"], "split": "100,0,0"},
        {"data_path": ["1", "few", "2", "hundred"], "split": "100,0,0"},
        {"train_data_path": ["few"]},
        {"train_data_path": ["few"], "test_data_path": ["few"], "eval_iters": 0},
        {"valid_data_path": ["hundred"], "skip_train": True},
        {"train_data_path": ["few"], "valid_data_path": ["one"], "full_validation": True},
    ],
)
def test_enough(folder, flags, given):
    check_parts(flags(**given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"data_path": ["three"], "split": "90,10,0"},
            "three: --split 90,10,0 leaves no.*'valid'",
        ),
        ({"data_path": ["one"], "split": "50,50"}, "one: --split 50,50 leaves no .*'train'"),
        ({"data_path": ["three"], "split": "999,1,0", "eval_iters": 0}, "no tokens for 'valid'"),
        ({"data_path": ["empty"], "split": "1"}, "empty.* no tokens for 'train'"),
        ({"train_data_path": ["empty"]}, "empty: has no tokens for 'train'"),
        ({"data_path": ["1", "hundred", "1", "three"], "split": "9,1,0"}, "three: .*'valid'"),
        ({"data_path": ["hundred"], "split": "0,100,0"}, "leaves nothing to train on"),
        ({"valid_data_path": ["hundred"]}, "--valid-data-path: leaves nothing to train on"),
        ({"data_path": ["one"], "split": "1", "skip_train": True}, "nothing to evaluate on"),
        ({"data_path": ["one"], "split": "-1,1,0"}, "expected up to three weights"),
        ({"data_args_path": "list"}, "--split is missing"),
        ({"train_data_path": ["one"], "split": "9,1,0"}, "names each part's own data; drop it"),
        ({"data_path": ["one", "few"], "split": "1"}, "few: .* 3 tokens for 'train', .* takes 9"),
        ({"data_path": ["one", "three"], "split": "1", "train_iters": 99}, "makes 7[0-9] samples"),
        ({"data_path": ["one"], "split": "1", "full_validation": True}, "no data for 'valid'"),
        (
            {"train_data_path": ["one"], "valid_data_path": ["short"], "full_validation": True},
            None,
        ),
        (
            {"train_data_path": ["one"], "valid_data_path": ["few"], "full_validation": True},
            "few: has 3 tokens for 'valid', and a sample of --seq-length 8 takes 9",
        ),
        (
            {"data_path": ["1", "one"], "split": "9,1,0", "full_validation": True},
            "drop the weights of --data-path",
        ),
        ({"data_path": ["few"], "split": "1", "train_iters": 10**6}, "draw 5,333,333 times over"),
        (
            {"data_path": ["1e6", "few", "1", "one"], "split": "1", "train_iters": 10**6},
            "times over",
        ),
        ({"data_path": ["one"], "split": "1", "data_cache_path": "one.bin"}, "is a file; pass"),
        ({"data_path": ["file"], "split": "1"}, "file is a file; pass another --data-cache-path"),
    ],
)
def test_what_cannot_be_drawn_is_refused(folder, flags, given, message):
    (folder / "list").write_text("one\n\n")
    write(folder / "file", [[1, 2, 3]])
    (folder / "file").touch()
    if message is None:
        check_parts(flags(**given))
        return
    with pytest.raises(DataError, match=message) as refusal:
        check_parts(flags(**given))
    assert "\n" not in str(refusal.value)


def test_which_parts_there_are(folder, flags):
    (folder / "blends.json").write_bytes(
        b"\xef\xbb\xbf" + json.dumps({"train": "one", "test": None}).encode()
    )
    for run, parts in [
        ({"data_path": ["one"], "split": "9,0,1"}, ["train", "test"]),
        ({"data_path": ["one"], "split": "9"}, ["train"]),
        ({"train_data_path": ["one"]}, ["train"]),
        ({"per_split_data_args_path": "blends.json"}, ["train"]),
        ({"mock_data": True}, ["train", "valid", "test"]),
    ]:
        found = [part for part in ("train", "valid", "test") if has_part(flags(**run), part)]
        assert found == parts


def damaged_header(data):
    return data[:9] + bytes([7]) + data[10:]


def damaged_length(data):
    return data[:34] + b"\x06" + data[35:]


def other_type(data):
    return data[:17] + bytes([4]) + data[18:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-8], "has .* bytes, where"),
        (lambda data: b"", "too few for an .idx"),
        (damaged_header, "version"),
        (damaged_length, "sequence 1 begins at byte"),
        (other_type, "sequence 1 begins at byte"),
        (lambda data: data[:-8] + b"\x09" + data[-7:], "document 100 begins with sequence 9"),
    ],
)
def test_damaged_index_is_named(folder, flags, damage, message):
    index = folder / "hundred.idx"
    index.write_bytes(damage(index.read_bytes()))
    with pytest.raises(DataError, match=f"hundred.idx: .*{message}"):
        check_parts(flags(data_path=["hundred"], split="1"))


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_no_changed_byte_of_an_index_goes_unnoticed(tmp_path_factory, data):
    """Unless training makes no use of it: a bound of a document between the others."""
    prefix = tmp_path_factory.getbasetemp() / "fuzzed"
    if not prefix.with_suffix(".idx").exists():
        write(prefix, [[number] * (1 + number % 9) for number in range(30)])
        prefix.with_suffix(".whole").write_bytes(prefix.with_suffix(".idx").read_bytes())
    whole = prefix.with_suffix(".whole").read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[place] ^= data.draw(st.integers(1, 255))
    prefix.with_suffix(".idx").write_bytes(changed[: data.draw(st.sampled_from([None, place]))])
    try:
        index = open_whole(prefix)
    except DataError as error:
        assert "\n" not in str(error)
        return
    assert index.lengths.tolist() == [1 + number % 9 for number in range(30)]
    assert index.dtype in (np.uint16, np.int16)


def test_cut_off_tokens_are_named_and_all_are_looked_at_if_asked(folder, flags):
    prefix = write(folder / "wrong", [[1, 2, 3]] * 100, np.int32)
    data = folder / "wrong.bin"
    data.write_bytes(b"\xff" * 4 + data.read_bytes()[4:])
    given = {"data_path": [str(prefix)], "split": "1"}
    check_parts(flags(**given))
    with pytest.raises(DataError, match="wrong.bin: token 0 is -1"):
        check_parts(flags(**given, check_data=True))
    data.write_bytes(data.read_bytes()[:-4])
    with pytest.raises(DataError, match="wrong.bin: has 1,196 bytes, not 1,200"):
        check_parts(flags(**given))


def test_training_and_the_cache_refuse_alike(folder, run_tool, tmp_path):
    """In one line, on every rank, before anything is built."""
    run = ["--data-path", folder / "three", "--split", "90,10,0", "--train-iters", 2]
    ranks = Starter(tmp_path).start(*run, base=BASE, processes=2)
    codes, output = ranks.join(), ranks.output
    assert codes == [2, 2] and "parameters on" not in output and "Traceback" not in output
    [line] = [line for line in output.splitlines() if "pretrain_helm.py: error" in line]
    assert "three: --split 90,10,0 leaves no tokens for 'valid'" in line
    done = run_tool("build_data_cache.py", *BASE, *run, "--data-cache-path", tmp_path / "cache")
    assert done.returncode == 1 and line.partition("error: ")[2] in done.stderr.splitlines()[-1]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("weights", [True, False])
def test_parts_of_a_blend_that_are_never_drawn_from(folder, tmp_path, weights):
    names = [folder / "hundred", folder / "two"]
    if weights:
        names = ["1", names[0], "2.5", names[1]]
    write(folder / "two", [[1, 2, 3]] * 200)
    flags = ["--data-path", *names, "--split", "80,10,10", "--train-iters", 2, "--eval-iters", 0]
    assert list(Starter(tmp_path).run(*flags, base=BASE)) == [1, 2]


def test_token_without_a_row_ends_training_in_one_line(folder, tmp_path):
    prefix = write(folder / "beyond", [[1, 2, 3, 40000]] * 50, np.uint16)
    flags = ["--data-path", prefix, "--split", "1", "--train-iters", 1]
    ranks = Starter(tmp_path).start(*flags, base=BASE)
    assert ranks.join() == [1] and "Traceback" not in ranks.output
    assert "the data has token 40,000, and the embedding 128 rows" in ranks.output


@pytest.mark.parametrize("test_too", [False, True])
def test_training_without_validation_ends_well(folder, tmp_path, test_too):
    data = ["--data-path", folder / "one", "--split", "100,0,0"]
    if test_too:
        data = ["--train-data-path", folder / "few", "--test-data-path", folder / "one"]
    flags = [
        *data,
        "--train-iters",
        2,
        "--eval-interval",
        1,
        "--save-interval",
        9,
        "--save",
        tmp_path / "s",
    ]
    ranks = Starter(tmp_path).start(*flags, base=BASE)
    assert ranks.join() == [0], ranks.output[-3000:]
    assert list(ranks.losses) == [1, 2]
    assert "no data for validation" in ranks.output
    assert "on validation set" not in ranks.output
    assert ("on test set" in ranks.output) == test_too
