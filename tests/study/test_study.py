"""Studies: what runs, in which order, what is skipped, and what the table says."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scipy import stats

from helm_megatron.study import config, queue, records, report, statistics
from helm_megatron.study.errors import StudyError
from tests import forked

ROOT = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("study_of_fakes.py")
PROGRAM = [str(DRIVER.with_name("fake_training.py"))]
EVALUATION = [str(DRIVER.with_name("fake_evaluation.py"))]

STUDY = """
baseline = "narrow"
seeds = [1, 2, 3]
selection_seeds = [11, 12]
learning_rates = [1e-3, 3e-3, 1e-2]
flags = '''{size} --num-attention-heads 2 --seq-length 8 --max-position-embeddings 8
--swiglu --normalization RMSNorm --disable-bias-linear --position-embedding-type rope
--untie-embeddings-and-output-weights --mock-data --tokenizer-type NullTokenizer --vocab-size 31
--micro-batch-size 1 --global-batch-size 2 --train-iters 20'''

[sizes.small]
size = "--num-layers 1 --hidden-size 8"
[sizes.large]
size = "--num-layers 2 --hidden-size 16 --bf16"
processes = 2

[variants.narrow]
flags = "--ffn-hidden-size 16"
[variants.wide]
flags = "--ffn-hidden-size 24"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "widths.toml"
    path.write_text(STUDY)
    return path


def started(file: Path) -> list[tuple[int, int, float]]:
    lines = (file.parent / "starts").read_text().splitlines()
    return [(int(w), int(s), float(r)) for w, s, r in (line.split() for line in lines)]


def command(file: Path, *flags: object) -> list[str]:
    words = [
        sys.executable,
        DRIVER,
        *PROGRAM,
        *EVALUATION,
        file,
        "--output-dir",
        file.parent / "out",
        *flags,
    ]
    return [*map(str, words)]


def environment(file: Path, **variables: object) -> dict[str, str]:
    more = {"FAKE_STARTS": file.parent / "starts", "PYTHONPATH": ROOT} | variables
    return os.environ | {name: str(value) for name, value in more.items()}


def study(file: Path, *flags: object, **variables: object) -> subprocess.CompletedProcess:
    done = command(file, *flags)
    return subprocess.run(done, env=environment(file, **variables), capture_output=True, text=True)


def rows_of(file: Path) -> dict[str, dict]:
    data = json.loads((file.parent / "out/small/table.json").read_text())
    return {row["variant"]: row for row in data["rows"]}


@pytest.mark.slow
def test_killed_study_goes_on_with_the_same_table(file, tmp_path_factory):
    other = tmp_path_factory.mktemp("uninterrupted") / file.name
    other.write_text(STUDY)
    done = study(other, "--at-once", 4)
    assert done.returncode == 0, done.stderr
    table = (other.parent / "out/small/table.md").read_text()
    assert done.stdout == table

    seconds = {"FAKE_SECONDS": 0.4}
    killed = subprocess.Popen(command(file, "--at-once", 2), env=environment(file, **seconds))
    starts = file.parent / "starts"
    while not starts.exists() or len(started(file)) < 5:
        assert killed.poll() is None
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = started(file)
    deadline = time.monotonic() + 20
    while (done := study(file, "--report")).returncode or "in use" in done.stderr:
        assert time.monotonic() < deadline
    done = study(file, "--at-once", 2)
    assert done.returncode == 0, done.stderr
    assert (file.parent / "out/small/table.md").read_text() == table
    # At most the two that ran when it was killed were run again.
    assert len(set(started(file))) == 18 and len(started(file)) <= 18 + 2 and len(before) < 18
    assert study(file).returncode == 0 and len(started(file)) <= 18 + 2
    assert (file.parent / "out/small/curves.png").stat().st_size > 1000


def test_table(file):
    done = study(file, "--at-once", 4)
    assert done.returncode == 0, done.stderr
    narrow, wide = (rows_of(file)[name] for name in ("narrow", "wide"))
    # The losses of fake_training.py at the best rate, seeds 1 to 3.
    assert narrow["selection"]["rate"] == wide["selection"]["rate"] == 3e-3
    assert not wide["selection"]["at_edge"]
    losses = [4 - 0.16 + 0.1 * seed for seed in (1, 2, 3)]
    assert narrow["loss"]["value"] == pytest.approx(sum(losses) / 3, abs=1e-6)
    low, high = stats.t.interval(0.95, 2, loc=losses[1], scale=stats.sem(losses))
    assert [narrow["loss"]["low"], narrow["loss"]["high"]] == pytest.approx([low, high], abs=1e-5)
    assert wide["difference"]["mean"]["value"] == pytest.approx(-0.08, abs=1e-5)
    assert narrow["difference"] is None and wide["bits_per_byte"]["runs"] == 3
    assert wide["seconds"] == pytest.approx(1.0)
    assert wide["cost"]["flops"] > narrow["cost"]["flops"] > 1e5
    assert "| narrow | -0.0800 |" in done.stdout and "| wide | 0.003 | 3 |" in done.stdout


@pytest.mark.slow
def test_failed_run_is_named_and_stops_no_other(file):
    done = study(file, "--at-once", 4, FAKE_FAILS=2)
    assert done.returncode == 1 and len(started(file)) == 18
    assert "seed 2: exit code 1: pretrain_helm.py: error: the loss is NaN in iteration 7" in (
        done.stdout
    )
    assert rows_of(file)["narrow"]["loss"]["runs"] == 2
    assert study(file).returncode == 0  # it is tried again
    assert rows_of(file)["narrow"]["loss"]["runs"] == 3 and len(started(file)) == 20


@pytest.mark.slow
def test_rate_of_a_variant_whose_selection_failed(file):
    done = study(file, "--at-once", 4, FAKE_FAILS=12)
    assert done.returncode == 1 and "narrow: no learning rate was selected" in done.stdout
    assert len(started(file)) == 12


@pytest.mark.slow
def test_array_tasks(file, monkeypatch):
    monkeypatch.setattr(queue, "PROGRAM", PROGRAM)
    listed = study(file, "--list").stdout.splitlines()
    assert len(listed) == 18 and listed[12].split("\t") == [
        *("12", "narrow", "seed 1", "the selected rate")
    ]
    done = study(file, "--task", 12)
    assert done.returncode == 1 and "narrow has no learning rate yet" in done.stderr
    for task in range(12):
        read = config.read(file, "small")
        run = read.selections()[task]
        job = queue.job(read, run, run.learning_rate, file.parent / "out")
        job.folder.mkdir(parents=True)
        loss = 3 + abs(run.learning_rate - 1e-2)
        record = records.Record(job.command, loss, None, {}, {20: loss}, 1.0, 128)
        records.write(record, job.folder / "record.json")
    assert study(file, "--task", 12).returncode == 0
    assert started(file) == [(16, 1, 1e-2)]
    done = study(file, "--report")
    assert done.returncode == 0 and "0.01*" in done.stdout  # the last of the rates


@pytest.mark.slow
def test_real_training(file):
    """Of a log that the training program writes, under torchrun."""
    small = 'size = "--num-layers 1 --hidden-size 8"'
    text = STUDY.replace("[1e-3, 3e-3, 1e-2]", "[1e-3]").replace("seeds = [1, 2, 3]", "seeds = [1]")
    text = text.replace(small, f'{small[:-1]} --eval-iters 2 --eval-interval 10"\nprocesses = 2')
    file.write_text(text)
    words = ["-m", "helm_megatron.cli", "study", file, "--output-dir", file.parent / "out"]
    done = subprocess.run([sys.executable, *words], env=environment(file), capture_output=True)
    assert done.returncode == 0, done.stderr
    said = (file.parent / "out/small/wide/lr-0.001/seed-1/log").read_text()
    [counted] = re.findall(r"number of parameters on .* rank \(0, 0, 0\): (\d+)", said)
    row = rows_of(file)["wide"]
    assert row["cost"]["parameters"] == int(counted)
    assert math.isfinite(row["loss"]["value"]) and row["seconds"] > 0
    [record] = (file.parent / "out/small/wide").rglob("record.json")
    found = records.read(record)
    assert sorted(found.validation) == [10, 20] and found.validation[20] == found.loss


def test_sizes_and_processes(file):
    read = config.read(file, "large")
    run = read.reports()[0]
    words = queue.job(read, run, 1e-3, file.parent).command
    assert "--nproc-per-node 2" in " ".join(words) and "--bf16" in words
    assert "--hidden-size 8" in " ".join(config.read(file, None).flags)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("baseline", "base", "lacks baseline"),
        ("seeds = [1", "colour = 3\nseeds = [1", "has 'colour', which is no setting"),
        ("[11, 12]", "[1, 12]", "selection_seeds must be others"),
        ('"--ffn-hidden-size 24"', '"--lr 3"', "has '--lr', which the study passes itself"),
        ('baseline = "narrow"', 'baseline = "thin"', "compared with 'thin': no such"),
        ("{size}", "{sise}", "has {sise}: the size has no text sise"),
        ("{size}", "$NO_SUCH_VARIABLE", "export NO_SUCH_VARIABLE=... first"),
        ("[1e-3, 3e-3, 1e-2]", "[1e-3, 1e-3]", "names a number twice"),
        ("processes = 2", "processes = 0", "processes is 0"),
        ("baseline =", "tasks = ['a']\nbaseline =", "tasks need the trained model: add --save-int"),
        ("baseline =", "tasks = [3]\nbaseline =", "tasks is [3], not a list of lm-eval's tasks"),
        ("[variants.wide]", "[variants.wide]\nseed = 3", "variants.wide has 'seed'"),
        ("baseline =", "baseline", "widths.toml is no TOML: "),
    ],
)
def test_what_a_file_gets_wrong(file, old, new, said):
    file.write_text(STUDY.replace(old, new, 1))
    with pytest.raises(StudyError) as error:
        config.read(file, "large")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_one_study_at_a_time(file):
    again = queue.lock(file.parent / "out")
    with queue.lock(file.parent / "out"), pytest.raises(StudyError, match="is in use"), again:
        pass


def test_questions(file):
    text = STUDY.replace("[1e-3, 3e-3, 1e-2]", "[1e-3]").replace("[1, 2, 3]", "[1, 2]")
    text = text.replace("baseline =", 'tasks = ["animals", "plants"]\nbaseline =', 1)
    file.write_text(text.replace("--train-iters 20", "--train-iters 20 --save-interval 20"))
    done = study(file, FAKE_UNASKED=2)
    assert (
        done.returncode == 1 and "evaluation.log): exit code 1: error: no questions" in done.stderr
    )
    assert rows_of(file)["wide"]["loss"]["runs"] == 2
    assert rows_of(file)["wide"]["answered"]["plants"]["right"]["runs"] == 1
    before = started(file)
    done = study(file)  # asks what was not answered, and trains nothing again
    assert done.returncode == 0, done.stderr
    assert sorted(started(file)[len(before) :]) == [(16, 2, 0), (24, 2, 0)]
    answered = rows_of(file)["wide"]["answered"]["animals"]
    assert answered["right"]["value"] == pytest.approx(0.255) and answered["chance"] == 0.2
    assert answered["difference"]["mean"]["value"] == pytest.approx(0.08)
    assert (
        "| wide | animals | 2 | 0.2550 |" in done.stdout and "| narrow | +0.0800 |" in done.stdout
    )
    # Of another training the answers are others, and it does not go on from the old checkpoints.
    runs = [file.parent / f"out/small/{name}/lr-0.001/seed-1" for name in ("narrow", "wide")]
    for run in runs:
        (run / "checkpoints").mkdir()
    file.write_text(file.read_text().replace("--ffn-hidden-size 24", "--ffn-hidden-size 32"))
    before = started(file)
    assert study(file).returncode == 0
    assert sorted(started(file)[len(before) :])[-2:] == [(32, 1, 1e-3), (32, 2, 1e-3)]
    assert len(started(file)) == len(before) + 4
    assert [(run / "checkpoints").exists() for run in runs] == [True, False]
    assert (runs[1] / "log").read_text().count("on validation set") == 2  # loss and bits, once


def test_log_without_an_evaluation():
    with pytest.raises(StudyError, match="no validation loss of the last iteration"):
        records.of_log("iteration 5/ 9 | elapsed time per iteration (ms): 3.0 |\n", [])


def test_statistics_are_those_of_scipy():
    one, other = [3.0, 3.2, 3.1, 3.4], [3.1, 3.25, 3.3, 3.35]
    found = statistics.paired(one, other)
    expected = stats.ttest_rel(one, other)
    interval = expected.confidence_interval(0.95)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert [found.mean.low, found.mean.high] == pytest.approx([interval.low, interval.high])
    assert statistics.paired([1.0], [2.0]) == statistics.Paired(
        statistics.Mean(-1.0, None, None, 1), None, None
    )
    same = statistics.paired([1.0, 2.0], [2.0, 3.0])
    assert same.p_value is None and same.mean.value == -1


@pytest.mark.parametrize("path", sorted((ROOT / "examples/studies").glob("*.toml")), ids=str)
@pytest.mark.parametrize("size", ["laptop", "8gpus"])
def test_examples_can_be_run(path, size, tmp_path):
    for name in ("data.bin", "data.idx"):
        (tmp_path / name).touch()
    variables = {"DATA": str(tmp_path / "data"), "TOKENIZER": "tokenizer"}
    script = Path(__file__).with_name("costs_of_study.py")
    done = forked.command(script, path, size, env=variables)
    assert done.returncode == 0, done.stderr
    costs = json.loads(done.stdout)
    flops = [cost["flops"] for cost in costs.values()]
    assert len(costs) >= 3 and min(cost["parameters"] for cost in costs.values()) > 1e5
    assert max(flops) < 1.5 * min(flops) or path.stem == "geometry"


def test_nothing_is_selected_before_a_run(file):
    study = config.read(file, None)
    assert report.select(study, [])["narrow"].rate is None
