"""Groups of words by depth, from a WordNet made up in the formats of wndb(5) and cntlist(5)."""

import pytest

# entity - thing - boat - ... six steps down to a dinghy, which a toy is above too; a name.
NOUNS = """\
  1 A license line starts with two spaces.
00000100 03 n 01 entity 0 000 | all
00000200 03 n 01 thing 0 001 @ 00000100 n 0000 | a
00000300 03 n 01 object 0 001 @ 00000200 n 0000 | a
00000400 03 n 01 artifact 0 001 @ 00000300 n 0000 | a
00000500 03 n 01 vehicle 0 001 @ 00000400 n 0000 | a
00000600 03 n 01 boat 0 001 @ 00000500 n 0000 | a
00000700 03 n 02 rowboat 0 Argo 0 001 @ 00000600 n 0000 | a
00000800 03 n 01 dinghy 0 002 @ 00000700 n 0000 @ 00000500 n 0000 | a
"""
INDEX = """\
  1 A license line starts with two spaces.
argo n 1 1 @ 1 1 00000700
artifact n 1 2 @ ~ 1 1 00000400
boat n 2 1 @ 2 1 00000600 00000100
dinghy n 1 1 @ 1 1 00000800
object n 1 0 1 1 00000300
rowboat n 1 1 @ 1 1 00000700
thing n 1 1 @ 1 1 00000200
vehicle n 1 1 @ 1 1 00000500
"""
# More than 20 times: vehicle; mostly a verb: object; less than 3 times: thing.
COUNTS = """\
argo%1:03:00:: 1 5
artifact%1:03:00:: 1 3
boat%1:03:00:: 1 9
boat%2:03:00:: 1 9
dinghy%1:03:00:: 1 20
object%1:03:00:: 1 4
object%2:03:00:: 1 5
rowboat%1:03:00:: 1 4
thing%1:03:00:: 1 2
vehicle%1:03:00:: 1 21
"""


@pytest.fixture
def wordnet(tmp_path):
    folder = tmp_path / "wordnet"
    folder.mkdir()
    for name, text in (("data.noun", NOUNS), ("index.noun", INDEX), ("cntlist.rev", COUNTS)):
        (folder / name).write_text(text)
    return folder


def test_groups(run_wordnet, wordnet, tmp_path):
    output = tmp_path / "groups.tsv"
    options = ["--wordnet-dir", wordnet, "--output", output]
    done = run_wordnet("make_groups.py", *options)
    assert done.returncode == 0, done.stderr
    lines = [line for line in output.read_text().splitlines() if not line.startswith("#")]
    expected = ["depth up to 4\tartifact", "depth 5 and 6\tboat", "depth 5 and 6\tdinghy"]
    assert lines == [*expected, "depth 5 and 6\trowboat"]
    done = run_wordnet("make_groups.py", *options, "--words", 1, "--overwrite")
    assert done.returncode == 0
    lines = [line for line in output.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == 2


def test_no_index(run_wordnet, wordnet, tmp_path):
    (wordnet / "index.noun").unlink()
    options = ["--wordnet-dir", wordnet, "--output", tmp_path / "groups.tsv"]
    done = run_wordnet("make_groups.py", *options)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "index.noun: cannot be read" in done.stderr
