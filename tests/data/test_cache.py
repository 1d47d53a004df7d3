import pytest

from helm_megatron.data.entropy import SPLITS
from tests.data.test_entropy import write
from tests.pretrain.forked import Starter
from tests.pretrain.runs import DENSE

START = DENSE.index("--mock-data")
BASE = DENSE[:START] + DENSE[DENSE.index("--tokenizer-type") :]


@pytest.fixture
def blend(tmp_path):
    """Flags of a blend of two datasets, in a file."""
    documents = [[number % 97] * (number % 40 + 1) for number in range(800)]
    lines = [
        f"0.{share} {write(tmp_path / name, documents)}" for name, share in (("a", 3), ("b", 7))
    ]
    (tmp_path / "blend.txt").write_text("\n".join(lines))
    return ["--data-args-path", tmp_path / "blend.txt", "--split", "90,9,1"]


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_training_only_reads_the_cache(run_tool, blend, tmp_path):
    cache = tmp_path / "cache"
    flags = [*blend, "--data-cache-path", cache, "--train-iters", 3]
    layout = "--tensor-model-parallel-size", 2, "--pipeline-model-parallel-size", 2
    done = run_tool(
        "build_data_cache.py", *BASE, *flags, *layout, "--tensorboard-dir", tmp_path / "t"
    )
    assert done.returncode == 0, done.stderr
    built = stamps(cache)
    # Of each dataset and split a description and three indices; of each blend one and two.
    assert len(built) == len(SPLITS) * (2 * 4 + 3), built
    assert f"{cache}: {len(built)} new files" in done.stdout
    assert not (tmp_path / "t").exists()
    Starter(tmp_path).run(*flags, base=BASE)
    assert stamps(cache) == built
    again = run_tool("build_data_cache.py", *BASE, *flags)
    assert f"{cache}: 0 new files" in again.stdout and f"({len(built)} files were" in again.stdout
    assert stamps(cache) == built


def test_refusals_in_one_line(run_tool, blend, tmp_path):
    small = BASE[: BASE.index("--global-batch-size")] + BASE[BASE.index("--lr") :]
    cache = ["--data-cache-path", tmp_path / "cache", "--train-iters", 3]
    (tmp_path / "file").touch()
    unfit = ["--data-cache-path", tmp_path / "file" / "a"]
    for flags, message, code in [
        ([*small, *blend, *cache], "--global-batch-size is missing", 2),
        ([*BASE, *blend, *cache, *unfit], "cannot be written", 1),
    ]:
        done = run_tool("build_data_cache.py", *flags)
        assert done.returncode == code
        assert message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
