import gzip
import json
from pathlib import Path

import pytest

from tests import forked

TOOL = Path(__file__).parents[2] / "examples" / "wordnet" / "make_questions.py"


def data_line(offset, words, above=()):
    """A line of a WordNet data file, see wndb(5)."""
    listed = " ".join(f"{word} 0" for word in words)
    pointers = " ".join(f"@ {to:08d} n 0000" for to in above)
    return f"{offset:08d} 03 n {len(words):02x} {listed} {len(above):03d} {pointers} | a gloss\n"


def letters(number):
    return "".join(chr(ord("a") + int(digit)) for digit in f"{number:05d}")


@pytest.fixture
def wordnet(tmp_path):
    """Made-up kinds k..., each below the root and above 200 things t..., and two bad things."""
    lines = [data_line(1, ["root"])]
    for kind in range(10):
        lines.append(data_line(100 + kind, [f"k{letters(kind)}"], [1]))
        for thing in range(200):
            number = 1000 + 200 * kind + thing
            lines.append(data_line(number, [f"t{letters(number)}"], [100 + kind]))
    for number in range(9000, 9200):
        lines.append(data_line(number, ["twice"], [100]))  # many meanings
        lines.append(data_line(number + 500, [f"Name{number}"], [100]))
        lines.append(data_line(number + 999, [f"old_{letters(number)}_kaaaaa"], [100]))  # a hint
    (tmp_path / "data.noun").write_text("  1 License\n" + "".join(lines))
    (tmp_path / "data.verb").write_text("  1 License\n")
    return tmp_path


def make(wordnet, output, *flags):
    return forked.command(TOOL, "--wordnet-dir", wordnet, "--output", output, *flags)


def test_questions(wordnet, tmp_path):
    outputs = [tmp_path / "1.jsonl.gz", tmp_path / "2.jsonl.gz"]
    for output in outputs:
        assert make(wordnet, output).returncode == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    with gzip.open(outputs[0], "rt") as lines:
        questions = [json.loads(line) for line in lines]
    # Of the last 5% of 2,611 documents, those of things.
    assert 50 <= len(questions) <= 130
    for question in questions:
        assert question["term"].startswith("t") and question["term"] != "twice"
        kind = (int(question["synset"]) - 1000) // 200
        assert question["choices"][question["answer"]] == f"k{letters(kind)}"
        assert len(set(question["choices"])) == 4


@pytest.mark.parametrize(
    ("file", "message"), [("data.noun", "cannot be read"), ("data.verb", "not a WordNet data")]
)
def test_bad_folder(wordnet, tmp_path, file, message):
    (wordnet / file).unlink()
    if file == "data.verb":
        (wordnet / file).write_text("words\n")
    done = make(wordnet, tmp_path / "out.jsonl.gz")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {wordnet / file}: {message}")
    assert not (tmp_path / "out.jsonl.gz").exists()


def test_too_few_kinds(wordnet, tmp_path):
    lines = [data_line(1, ["root"]), data_line(2, ["kind"], [1])]
    lines += [data_line(number, [f"t{letters(number)}"], [2]) for number in range(100, 200)]
    (wordnet / "data.noun").write_text("".join(lines))
    done = make(wordnet, tmp_path / "out.jsonl.gz")
    assert done.returncode == 1
    assert "too few nouns" in done.stderr and len(done.stderr.splitlines()) == 1
