import gzip
import json

import pytest

# Made up, in the format of wndb(5).
NOUNS = """\
  1 A license line starts with two spaces.
00000100 03 n 01 thing 0 001 ~ 00000200 n 0000 | what there is
00000200 03 n 02 sea_boat 0 seaboat 0 003 @ 00000100 n 0000 ~ 00000300 n 0000 + 00000100 v 0101 | \
a thing that floats; "the boat left"; "two boats came back";
00000300 15 n 0a A 0 B 0 C 0 D 0 E 0 F 0 G 0 H 0 I 0 J 0 002 @i 00000200 n 0000 \
@ 00000100 n 0000 | one of those: "A sailed"
"""
VERBS = """\
  1 A license line starts with two spaces.
00000100 38 v 01 move 0 000 01 + 01 00 | go from place to place
00000200 38 v 01 float 1 001 @ 00000100 v 0000 02 + 01 00 + 02 00 | move on water, said "float"
"""


@pytest.fixture
def wordnet(tmp_path):
    folder = tmp_path / "wordnet"
    folder.mkdir()
    (folder / "data.noun").write_text(NOUNS)
    (folder / "data.verb").write_text(VERBS)
    return folder


def test_documents(run_wordnet, wordnet, tmp_path):
    outputs = [tmp_path / "1.jsonl.gz", tmp_path / "2.jsonl.gz"]
    for output in outputs:
        done = run_wordnet("make_corpus.py", "--wordnet-dir", wordnet, "--output", output)
        assert done.returncode == 0, done.stderr
    with gzip.open(outputs[0], "rt") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    assert sorted(texts) == [
        "A, B, C, D, E, F, G, H, I, J: an instance of sea boat and a kind of thing. One of those."
        ' "A sailed"',
        'float: a way to move. Move on water, said "float".',
        "move. Go from place to place.",
        'sea boat, seaboat: a kind of thing. A thing that floats. "the boat left"; "two boats came'
        ' back"',
        "thing. What there is.",
    ]
    assert outputs[0].read_bytes() == outputs[1].read_bytes()

    done = run_wordnet(
        *("make_corpus.py", "--wordnet-dir", wordnet, "--output", tmp_path / "3.jsonl.gz"),
        "--first-sentence",
    )
    assert done.returncode == 0, done.stderr
    firsts = [
        "A, B, C, D, E, F, G, H, I, J: an instance of sea boat and a kind of thing.",
        *("float: a way to move.", "move.", "sea boat, seaboat: a kind of thing.", "thing."),
    ]
    with gzip.open(tmp_path / "3.jsonl.gz", "rt") as lines:
        cut = [json.loads(line)["text"] for line in lines]
    assert sorted(cut) == firsts
    assert all(text.startswith(f"{first} ") for text, first in zip(texts, cut, strict=True))


@pytest.mark.parametrize(
    ("noun", "message"), [(None, "cannot be read"), ("words\n", "not a WordNet data file")]
)
def test_bad_folder(run_wordnet, wordnet, tmp_path, noun, message):
    (wordnet / "data.noun").unlink()
    if noun:
        (wordnet / "data.noun").write_text(noun)
    output = tmp_path / "out.jsonl.gz"
    done = run_wordnet("make_corpus.py", "--wordnet-dir", wordnet, "--output", output)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {wordnet}/data.noun: {message}")
    assert not output.exists()
