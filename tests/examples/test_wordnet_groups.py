import pytest

from helm_megatron.analysis.states import read_groups

# Made up, in the format of wndb(5): a chain of kinds, and one word that has another first sense.
CHAIN = ["entity", "object", "thing", "machine", "vehicle", "car", "taxi"]
NOUNS = "  1 A license line starts with two spaces.\n" + "".join(
    f"{number:08d} 03 n 01 {word} 0 "
    + (f"001 @ {number - 1:08d} n 0000" if number else "000")
    + " | a gloss\n"
    for number, word in enumerate(CHAIN)
)
INDEX = "  1 A license line.\n" + "".join(
    f"{word} n 1 2 @ ~ 1 1 {number:08d}\n" for number, word in enumerate(CHAIN)
)
COUNTS = "".join(f"{word}%1:03:00:: 1 {9 - number}\n" for number, word in enumerate(CHAIN))


@pytest.fixture
def wordnet(tmp_path):
    folder = tmp_path / "wordnet"
    folder.mkdir()
    (folder / "data.noun").write_text(NOUNS)
    (folder / "index.noun").write_text(INDEX)
    # Verbs and later senses do not count.
    (folder / "cntlist.rev").write_text(COUNTS + "car%2:03:00:: 1 99\ncar%1:03:01:: 2 99\n")
    return folder


def test_groups(run_wordnet, wordnet, tmp_path):
    output = tmp_path / "groups.tsv"
    options = ["--wordnet-dir", wordnet, "--output", output]
    done = run_wordnet("make_groups.py", *options)
    assert done.returncode == 0, done.stderr
    found = read_groups(output)
    assert found == {"depth 3-4": ["machine", "vehicle"], "depth 5-6": ["car", "taxi"]}
    done = run_wordnet("make_groups.py", *options, "--overwrite", "--words", 1)
    assert done.returncode == 0
    assert read_groups(output) == {"depth 3-4": ["machine"], "depth 5-6": ["car"]}


@pytest.mark.parametrize("name", ["index.noun", "cntlist.rev"])
def test_files_that_are_not_wordnets(run_wordnet, wordnet, tmp_path, name):
    (wordnet / name).write_text("something else\n")
    done = run_wordnet("make_groups.py", "--wordnet-dir", wordnet, "--output", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {wordnet / name}: not WordNet's ")
    assert done.stderr.count("\n") == 1
