import gzip
import json
import os
import random
import resource
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

from helm_megatron.data.errors import DataError
from helm_megatron.data.inputs import find_sources
from helm_megatron.data.pool import TokenizerSpec
from helm_megatron.data.preprocess import Options, preprocess
from tests.data.conftest import CORPUS, ROOT

KEYS = ("text", "id")
SUFFIXES = ("bin", "idx", "json")
RUN = """
import sys
from pathlib import Path
from helm_megatron.data.errors import DataError
from helm_megatron.data.inputs import find_sources
from helm_megatron.data.pool import TokenizerSpec
from helm_megatron.data.preprocess import Options, preprocess

if __name__ == "__main__":
    output, model, partitions, *inputs = sys.argv[1:]
    spec = TokenizerSpec("SentencePieceTokenizer", model, append_eod=True)
    options = Options(("text", "id"), partitions=int(partitions), checkpoint_seconds=0, resume=True)
    try:
        preprocess(find_sources(inputs), Path(output), spec, options)
    except DataError as error:
        sys.exit(f"error: {error}")
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[str]:
    """Two files of some megabytes, one of them compressed."""
    folder = tmp_path_factory.mktemp("sources")
    with gzip.open(CORPUS, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in islice(lines, 24_000)]
    lines = [json.dumps({"text": text, "id": str(i)}) + "\n" for i, text in enumerate(texts)]
    (folder / "a.jsonl.gz").write_bytes(gzip.compress("".join(lines[:12_000]).encode()))
    (folder / "b.jsonl").write_text("".join(lines[12_000:]))
    return [str(folder / "a.jsonl.gz"), str(folder / "b.jsonl")]


@pytest.fixture
def start(sources, sentencepiece_model, tmp_path):
    """Start a run that goes on from its last checkpoint; it makes one after every batch."""
    script = tmp_path / "run.py"
    script.write_text(RUN)

    def begin(output, partitions=2, **options):
        command = [sys.executable, script, output, sentencepiece_model, partitions, *sources]
        return subprocess.Popen(
            list(map(str, command)),
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            **options,
        )

    return begin


def content(output: Path) -> dict[str, bytes]:
    """All that a run leaves beside `output`."""
    return {path.name: path.read_bytes() for path in output.parent.iterdir()}


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.slow
def test_killed_at_20_random_moments(start, tmp_path):
    began = time.monotonic()
    assert start(tmp_path / "undisturbed" / "a").wait() == 0
    seconds = time.monotonic() - began
    expected = content(tmp_path / "undisturbed" / "a")
    assert sorted(expected) == [f"a_{key}_document.{s}" for key in sorted(KEYS) for s in SUFFIXES]
    rng = random.Random(1)
    kills = resumed = finished = 0
    while kills < 20:
        output = tmp_path / f"run{finished}" / "a"
        run = start(output)
        try:
            assert run.wait(timeout=rng.uniform(0, seconds)) == 0, run.stderr.read()
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()
            kills += 1
            journal = output.with_name("a.partial") / "journal"
            resumed += journal.exists() and journal.read_bytes().count(b"\n") > 1
        else:
            assert content(output) == expected
            finished += 1
    assert start(output).wait() == 0
    assert content(output) == expected
    assert resumed > 3  # kills after a checkpoint


def test_workers_end_with_a_killed_parent(start, tmp_path):
    run = start(tmp_path / "a")
    while not (workers := children(run.pid)) and run.poll() is None:
        time.sleep(0.01)
    run.kill()
    run.wait()
    assert workers
    end = time.monotonic() + 60
    while any(map(is_running, workers)):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("stop", range(1, 6))
def test_stopped_while_files_get_their_names(
    corpus, sentencepiece_model, tmp_path, monkeypatch, stop
):
    spec = TokenizerSpec("SentencePieceTokenizer", sentencepiece_model)
    options = {"keys": ("text", "title"), "partitions": 3, "max_bad_records": 9}
    sources = find_sources([corpus])
    preprocess(sources, tmp_path / "undisturbed" / "a", spec, Options(**options))
    renamed = []

    def rename(path, target, original=Path.rename):
        if len(renamed) == stop:
            raise KeyboardInterrupt
        renamed.append(original(path, target))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", rename)
        preprocess(sources, tmp_path / "out" / "a", spec, Options(**options))
    indices = [path.name for path in (tmp_path / "out").glob("*.idx")]
    assert len(indices) == max(0, stop - 4)  # indices come last
    preprocess(sources, tmp_path / "out" / "a", spec, Options(**options, resume=True))
    assert content(tmp_path / "out" / "a") == content(tmp_path / "undisturbed" / "a")


def test_full_disk_in_one_line_then_resume(start, tmp_path):
    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))

    output = tmp_path / "out" / "a"
    run = start(output, partitions=1, preexec_fn=small_disk)
    _, printed = run.communicate()
    assert run.returncode == 1
    assert "error: " in printed and "free some space, then pass --resume" in printed
    assert "Traceback" not in printed
    assert os.listdir(output.parent) == ["a.partial"]
    assert start(output, partitions=1).wait() == 0
    assert start(tmp_path / "undisturbed" / "a", partitions=1).wait() == 0
    assert content(output) == content(tmp_path / "undisturbed" / "a")


def test_unfinished_runs_are_told_from_others(start, sources, sentencepiece_model, tmp_path):
    output = tmp_path / "a"
    run = start(output)
    journal = tmp_path / "a.partial" / "journal"
    while not journal.exists() or journal.read_bytes().count(b"\n") < 2:
        assert run.poll() is None
        time.sleep(0.001)
    spec = TokenizerSpec("SentencePieceTokenizer", sentencepiece_model, append_eod=True)
    options = {"keys": KEYS, "partitions": 2}
    with pytest.raises(DataError, match="another run is writing here"):
        preprocess(find_sources(sources), output, spec, Options(**options, resume=True))
    run.kill()
    run.wait()
    with pytest.raises(DataError, match="an unfinished run; pass --resume .* or --overwrite"):
        preprocess(find_sources(sources), output, spec, Options(**options))
    for inputs, changed, message in [
        (sources[:1], options, "was begun with another input"),
        (sources, options | {"partitions": 3}, "was begun with another options"),
    ]:
        with pytest.raises(DataError, match=message):
            preprocess(find_sources(inputs), output, spec, Options(**changed, resume=True))
    assert start(output).wait() == 0
    run = start(output)  # again: there is nothing left to do
    assert "complete already" in run.communicate()[1] and run.returncode == 0
    with pytest.raises(DataError, match="pass --overwrite"):
        preprocess(find_sources(sources[:1]), output, spec, Options(**options, resume=True))


@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_of_others_is_not_emptied(linked, sources, sentencepiece_model, tmp_path):
    """Nor replaced: its name is all that it has of an unfinished run."""
    theirs = tmp_path / ("elsewhere" if linked else "a.partial")
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("mine")
    if linked:
        (tmp_path / "a.partial").symlink_to(theirs)
    spec = TokenizerSpec("SentencePieceTokenizer", sentencepiece_model, append_eod=True)
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(DataError, match="a.partial.*(no file of an unfinished run|is a link)"):
            preprocess(find_sources(sources), tmp_path / "a", spec, Options(keys=KEYS, **options))
        assert (theirs / "thesis.tex").read_text() == "mine"
        assert [path.name for path in theirs.iterdir()] == ["thesis.tex"]
