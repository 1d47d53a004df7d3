import pytest

from helm_megatron.analysis.words import read_words

# Made up, in the format of wndb(5): a boat and two ships, one of them below the other and the boat,
# a proper name, and something else.
NOUNS = """\
  1 A license line starts with two spaces.
00000100 03 n 01 thing 0 001 ~ 00000200 n 0000 | what there is
00000200 03 n 02 sea_boat 0 seaboat 0 001 @ 00000100 n 0000 | a thing that floats
00000300 03 n 01 ship 0 001 @ 00000200 n 0000 | a large boat
00000400 03 n 01 ship 0 002 @ 00000300 n 0000 @ 00000200 n 0000 | a large ship
00000500 15 n 01 Argo 0 001 @i 00000300 n 0000 | one of those
00000600 03 n 01 mast 0 001 @ 00000400 n 0000 | part of a ship, say
"""


@pytest.fixture
def wordnet(tmp_path):
    folder = tmp_path / "wordnet"
    folder.mkdir()
    (folder / "data.noun").write_text(NOUNS)
    return folder


def test_tree(run_wordnet, wordnet, tmp_path):
    output = tmp_path / "boats.tsv"
    options = ["--wordnet-dir", wordnet, "--root", "seaboat", "--output", output]
    done = run_wordnet("make_tree.py", *options)
    assert done.returncode == 0, done.stderr
    lines = [line for line in output.read_text().splitlines() if not line.startswith("#")]
    assert lines == ["sea boat", "ship\tsea boat", "ship 2\tsea boat", "mast\tship 2"]
    assert read_words(output).edges == [(1, 0), (2, 0), (3, 2)]


def test_unknown_root(run_wordnet, wordnet, tmp_path):
    output = tmp_path / "boats.tsv"
    options = ["--wordnet-dir", wordnet, "--root", "Argonaut", "--output", output]
    done = run_wordnet("make_tree.py", *options)
    assert done.returncode == 1
    assert done.stderr == "error: --root Argonaut: no noun of WordNet\n"
    assert not output.exists()
