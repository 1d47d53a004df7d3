"""The scripts of a chain without SLURM: what is tokenized and converted again, and what is not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.conftest import ROOT

SRUN = '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n'
SBATCH = '#!/bin/bash\nprintf "%s " "$@" >>"$CALLS"\necho >>"$CALLS"\necho 1\n'
# In the place of Python: notes its arguments and makes what conversion and evaluation make.
PYTHON = """#!/bin/bash
echo "$*" >>"$CALLS"
while (($#)); do
    [[ $1 != --save ]] || mkdir "$2"
    [[ $1 != --output-dir ]] || touch "$2/scores.json"
    shift
done
"""


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Two SentencePiece models of the same size."""
    folder = tmp_path_factory.mktemp("tokenizers")
    found = []
    for name, words in (("a", "river stone lantern"), ("b", "marble copper window")):
        text = folder / f"{name}.txt"
        text.write_text("\n".join(f"{words} {i}" for i in range(300)))
        flags = ["--input", text, "--vocab-size", "290", "--output-prefix", folder / name]
        run(sys.executable, ROOT / "tools" / "train_tokenizer.py", *flags)
        found.append(folder / f"{name}.model")
    return found


def run(*command, env=None, code=0):
    """Run a command in the repository's folder; returns its output, both streams of it."""
    done = subprocess.run(
        [*map(str, command)],
        cwd=ROOT,
        env=os.environ | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


class Chain:
    """The jobs of slurm/, run here; a folder whose name has a space."""

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        self.folder, self.tokenizer = folder / "a corpus", folder / "tokenizer.model"
        self.folder.mkdir()
        self.tokenizer.write_bytes(tokenizer.read_bytes())
        programs = folder / "bin"
        programs.mkdir()
        for name, text in (("srun", SRUN), ("sbatch", SBATCH), ("python", PYTHON)):
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        self.calls = folder / "calls"
        self.env = {"PATH": f"{programs}:{os.environ['PATH']}", "CALLS": str(self.calls)}
        self.env |= {"PYTHON": sys.executable, "HELM_MEGATRON_DIR": str(ROOT)}
        self.list, self.prefix = self.folder / "the list", self.folder / "data"
        self.flags = ["--tokenizer-type", "SentencePieceTokenizer"]
        self.flags += [f"--tokenizer-model={self.tokenizer}"]

    def files(self, *texts, **keys):
        """Make files of a document each and list them; returns their paths."""
        paths = [self.folder / f"text {i}.jsonl" for i in range(len(texts))]
        for path, text in zip(paths, texts, strict=True):
            path.write_text(json.dumps({"text": text} | keys) + "\n")
        self.list.write_text("\n".join(map(str, paths)))  # no newline at the end
        return paths

    def tokenize(self, *flags, tasks=1, code=0, **env):
        out = ""
        for task in range(tasks):
            ids = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": str(tasks)}
            out += self.script(*self.flags, *flags, code=code, **ids, **env)
        return out

    def script(self, *flags, code=0, **env):
        script = ["bash", "slurm/preprocess.sbatch", self.list, self.prefix]
        return run(*script, *flags, env=self.env | env, code=code)

    def texts(self, key="text"):
        """The documents of the joined dataset."""
        from sentencepiece import SentencePieceProcessor

        from helm_megatron.data.indexed import paths_of, read_index

        prefix = f"{self.prefix}_{key}_document"
        data, index = paths_of(prefix)
        model = SentencePieceProcessor(model_file=str(self.tokenizer))
        made, ids = read_index(index), data.read_bytes()
        found = []
        for length in made.lengths:
            size = int(length) * made.dtype.itemsize
            tokens = [int.from_bytes(ids[i : i + 2], "little") for i in range(0, size, 2)]
            found.append(model.decode(tokens))
            ids = ids[size:]
        return found


@pytest.fixture
def chain(tmp_path, tokenizers):
    return Chain(tmp_path, tokenizers[0])


def test_documents_are_in_the_order_of_the_list_for_every_key(chain):
    paths = chain.files("river", "stone", "river stone", title="lantern")
    lines = [str(paths[2]), "", f"{paths[0]}\r", "   ", str(paths[1]), str(paths[2])]
    chain.list.write_text("\n".join(lines))
    chain.tokenize("--json-keys", "text", "title", tasks=2)
    chain.script()
    assert chain.texts() == ["river stone", "river", "stone", "river stone"]
    assert chain.texts("title") == ["lantern"] * 4


def test_a_requeued_task_goes_on(chain):
    chain.files("river")
    chain.tokenize()
    [index] = (chain.folder / "data.shards").glob("*.idx")
    partial = index.with_name(index.name.removesuffix("_text_document.idx") + ".partial")
    index.unlink()
    partial.mkdir()
    (partial / "journal").touch()  # killed before it had written anything
    chain.tokenize()
    assert index.exists() and not partial.exists()


def test_what_is_done_is_not_done_again(chain):
    chain.files("river", "stone")
    chain.tokenize()
    assert chain.tokenize().count("complete already") == 2
    chain.script(*chain.flags)
    chain.script(*chain.flags)  # the second replaces what the first has joined
    assert chain.texts() == ["river", "stone"]


def test_another_list_is_another_dataset(chain):
    chain.files("river", "stone", "lantern")
    chain.tokenize()
    chain.script()
    chain.list.write_text(str(chain.folder / "text 2.jsonl"))
    chain.tokenize()
    chain.script()
    assert chain.texts() == ["lantern"]


def test_changed_text_tokenizer_and_flags_are_tokenized_again(chain, tokenizers):
    [path] = chain.files("river")
    chain.tokenize("--append-eod")
    path.write_text('{"text": "stone"}\n')
    assert "has changed since" in chain.script(code=2)
    chain.tokenize("--append-eod")
    chain.script()
    assert chain.texts() == ["stone"]
    chain.tokenizer.write_bytes(tokenizers[1].read_bytes())
    assert "is not tokenized with these flags" in chain.script(code=2)
    chain.tokenize()
    chain.script()
    [sidecar] = [json.loads(path.read_text()) for path in chain.folder.glob("data_*.json")]
    assert sidecar["options"]["append_eod"] is False
    assert chain.texts() == ["stone"]


@pytest.mark.parametrize(
    ("flags", "env", "message"),
    [
        (["--overwrite"], {}, "--overwrite: LIST and OUTPUT_PREFIX say"),
        (["--input=x"], {}, "--input=x: LIST and OUTPUT_PREFIX say"),
        ([], {"SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "3"}, "must be numbered from 0"),
    ],
)
def test_mistakes_of_an_array_are_one_line(chain, flags, env, message):
    chain.files("river")
    out = chain.tokenize(*flags, code=2, **env)
    assert message in out and len(out.splitlines()) == 1


def test_lists_that_name_nothing_are_one_line(chain):
    assert "no list of input files" in chain.tokenize(code=2)
    chain.list.write_text("\n \n")
    assert "names no input files" in chain.tokenize(code=2)


def test_a_dataset_of_others_is_not_replaced(chain):
    chain.files("river")
    chain.tokenize()
    (chain.folder / "data_text_document.idx").write_text("mine")
    assert "not of this script" in chain.script(code=2)
    assert (chain.folder / "data_text_document.idx").read_text() == "mine"


def submit(chain, *flags, code=0):
    options = ["--inputs", chain.list, "--data-prefix", "data/corpus"]
    command = ["slurm/submit.sh", "examples/tiny_mice.sh", *options, "--", *flags]
    return run(*command, env=chain.env, code=code)


@pytest.mark.parametrize(
    "flags",
    [
        ["--tokenizer-type", "A", "--tokenizer-model", "a model"],
        ["--tokenizer-model=x", "--tokenizer-type=A", "--tokenizer-model=a model"],
    ],
)
def test_submit_reads_flags_as_python_does(chain, flags):
    chain.files("river")
    submit(chain, *flags)
    array, join, train = chain.calls.read_text().splitlines()
    made = f"{chain.list} data/corpus --tokenizer-type A --tokenizer-model a model --append-eod"
    assert "--array=0-0 " in array and array.strip().endswith(made)
    assert "--array" not in join and join.strip().endswith(made)
    assert train.strip().endswith(f"{' '.join(flags)} --data-path data/corpus_text_document")


def test_submit_takes_no_other_data(chain):
    chain.files("river")
    flags = ["--tokenizer-type=A", "--tokenizer-model=B", "--data-path=x"]
    assert "--data-path=x: with --inputs the data is" in submit(chain, *flags, code=2)
    assert not chain.calls.exists()


def test_submit_misses_a_tokenizer_before_anything_is_submitted(chain):
    chain.files("river")
    out = submit(chain, "--tokenizer-type", "A", code=2)
    assert out.splitlines() == [
        "submit.sh: error: --inputs needs --tokenizer-model among the flags after --"
    ]
    assert not chain.calls.exists()


def test_only_another_checkpoint_is_converted_again(chain):
    folder = chain.folder
    env = chain.env | {"PYTHON": "python", "CHECKPOINT_DIR": str(folder), "HF_DIR": f"{folder}/hf"}
    env["EVALUATION_DIR"] = f"{folder}/scores"
    script = ["bash", "slurm/convert_and_evaluate.sbatch", "examples/tiny_mice.sh"]
    tracker = folder / "latest_checkpointed_iteration.txt"
    assert "no checkpoint in CHECKPOINT_DIR" in run(*script, env=env, code=2)
    made = []
    for iteration, flags in ((10, ""), (10, ""), (20, ""), (20, "--tasks=paper")):
        if not tracker.exists() or tracker.read_text() != str(iteration):
            tracker.write_text(str(iteration))
        run(*script, *flags.split(), env=env)
        calls = chain.calls.read_text()
        made.append((calls.count("convert.py"), calls.count("evaluate.py")))
    assert made == [(1, 1), (1, 1), (2, 2), (2, 3)]
    for stamp, of in (
        (folder / "scores" / "source.txt", "scores.json"),
        (folder / "hf.source", "hf"),
    ):
        stamp.unlink()
        assert f"{of} is there, and not of this script" in run(*script, env=env, code=2)
    assert (folder / "hf").exists()
