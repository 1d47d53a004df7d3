"""examples/embed_mammals.py on a small tree: what it measures, what it writes, bad input."""

import json
import math
import runpy
import subprocess
from pathlib import Path

import pytest

from helm_megatron.analysis.words import Words, WordsError
from tests import forked

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "embed_mammals.py"
TREE = "root\na\troot\nb\troot\nc\ta\nd\ta\ne\tb\nf\te\n"


def run(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    words = folder / "tree.tsv"
    words.write_text(text)
    return forked.command(SCRIPT, "--words", words, "--output-dir", folder / "out", *options)


def test_embeds_a_small_tree(tmp_path: Path) -> None:
    options = "--dimensions 2 3 --rates 0.01 0.1 --seeds 2 --steps 150 --pairs 32".split()
    done = run(tmp_path, TREE, *options)
    assert done.returncode == 0, done.stderr
    runs = json.loads((tmp_path / "out" / "runs.json").read_text())
    assert len(runs) == 2 * 2 * 2 * 2
    for each in runs:
        assert all(math.isfinite(v) for v in each.values() if not isinstance(v, str)), each
        assert each["worst-case distortion"] >= 1 >= each["MAP"] > 0
    assert min(each["mean distortion"] for each in runs) < 0.2
    table = (tmp_path / "out" / "table.md").read_text()
    assert done.stdout == table
    assert [line.split("|")[1:3] for line in table.splitlines()[2:]] == [
        [f" {d} ", f" {geometry} "] for d in (2, 3) for geometry in ("hyperbolic", "Euclidean")
    ]
    assert (tmp_path / "out" / "distortion.png").read_bytes().startswith(b"\x89PNG")


def test_bad_input(tmp_path: Path) -> None:
    done = run(tmp_path, "a\nb\tc\nc\tb\n")
    assert done.returncode == 1
    assert done.stderr == "error: not a tree: some words are not connected with the others\n"
    assert not (tmp_path / "out").exists()


def test_distances_of_a_tree() -> None:
    example = runpy.run_path(str(SCRIPT))
    words = Words(list("abcd"), [(1, 0), (2, 1), (3, 0)])
    expected = [[0, 1, 2, 1], [1, 0, 1, 2], [2, 1, 0, 3], [1, 2, 3, 0]]
    assert example["tree_distances"](words).tolist() == expected
    words.edges.pop()
    with pytest.raises(WordsError, match="4 words need 3 parents, not 2"):
        example["tree_distances"](words)
