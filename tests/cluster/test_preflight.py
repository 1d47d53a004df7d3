"""What a node finds out about itself, and the preflight of a single node."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from helm_megatron.cluster.node_checks import code_problems, code_version, local_problems

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path):
    """A prefix of readable .bin/.idx files."""
    (tmp_path / "d.bin").touch()
    (tmp_path / "d.idx").write_bytes(b"MMIDIDX\x00\x00")
    return tmp_path / "d"


def problems(*flags, gpus=0):
    return local_problems([str(flag) for flag in flags], gpus)


def test_nothing_is_found_where_nothing_is_wrong(data, tmp_path):
    save = tmp_path / "a" / "b"
    flags = ["--data-path", "0.3", data, "0.7", data, "--seq-length", "32", "--save", save]
    assert (
        problems(*flags, "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", "x/y")
        == []
    )
    assert list(save.iterdir()) == []


def test_missing_and_foreign_files_are_named(data, tmp_path):
    gone = tmp_path / "gone"
    found = problems(
        "--train-data-path", gone / "x" / "d", "--tokenizer-model", tmp_path / "t.model"
    )
    assert found == [
        f"{gone} does not exist, needed for {gone}/x/d.idx",
        f"{tmp_path}/t.model does not exist",
    ]
    data.with_suffix(".idx").write_bytes(b"text")
    assert problems("--data-path", data) == [f"{data}.idx is no index of a Megatron dataset"]


def test_a_save_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "save"
    assert problems("--save", folder) == [
        f"checkpoint folder {folder} cannot be written: Not a directory"
    ]


def test_missing_gpus_are_counted():
    assert problems(gpus=4096)[0].endswith("GPUs, but the job needs 4096")


def test_too_few_cpus_are_counted(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 4})
    assert local_problems([], 0, processes=2) == []
    [problem] = local_problems([], 0, processes=8)
    assert problem.startswith("2 CPUs for 8 ranks") and "--cpus-per-task 8" in problem


def test_a_node_with_gpus_needs_a_compiler(monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert problems() == []
    [problem] = [text for text in problems(gpus=1) if "Triton" in text]
    assert "a C compiler" in problem


def test_the_minority_has_other_code():
    usual, other = code_version(), code_version() | {"torch": "1.0"}
    names = ["a", "b", "c"]
    assert code_problems(names, [usual, usual, usual]) == []
    expected = f"a: other code than the other nodes: torch 1.0 instead of {usual['torch']}"
    assert code_problems(names, [other, usual, usual]) == [expected]


def preflight(port, *flags):
    """Run the preflight of one node with two ranks."""
    node = ["--node-rank", "0", "--node-names", "localhost", "--master-addr", "localhost"]
    node += ["--master-port", str(port), "--processes-per-node", "2"]
    return subprocess.run(
        [sys.executable, "-m", "helm_megatron.cluster.preflight", *node, "--", *map(str, flags)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_port_in_use_is_named():
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
        result = preflight(port)
    assert result.returncode == 1
    reason = f"no common store on localhost:{port}: it is in use; set MASTER_PORT"
    assert result.stderr == f"preflight: error: localhost: {reason}\n"


def test_one_node_that_is_well(data, tmp_path):
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    result = preflight(port, "--data-path", data, "--save", tmp_path / "save")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "preflight: 1 nodes, 2 ranks: all is well\n"
