"""A node that cannot take part is named, with the reason, and nothing is trained."""

import shutil
import subprocess

import pytest

from tests.slurm.conftest import ROOT
from tests.slurm.test_training import MOCK


def failed_output(cluster, jobs, *flags, **env):
    """The output of a job that has to fail in its preflight."""
    job = jobs.pretrain(*flags, env=env)
    assert cluster.wait(job) == "FAILED"
    assert jobs.log(job, 0) == ""
    assert cluster.job(job, "Restarts") == "0"
    return jobs.output(job)


@pytest.fixture
def other_commit(tmp_path):
    """A copy of the code with another commit checked out."""
    folder = tmp_path / "other"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "runs", "tests")
    shutil.copytree(ROOT, folder, ignore=ignored)
    with (folder / "pretrain_helm.py").open("a") as file:
        file.write("# another commit\n")
    git = ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "other"]):
        subprocess.run([*git, *command], check=True)
    (folder / ".venv").mkdir()
    return folder


def test_data_missing_on_one_node_and_other_code(cluster, jobs, tmp_path, other_commit):
    node1, node2 = cluster.nodes
    data = tmp_path / "data"
    data.mkdir()
    for suffix in (".bin", ".idx"):
        (data / f"corpus{suffix}").write_bytes(b"MMIDIDX\x00\x00")
    head = subprocess.run(
        ["git", "-C", other_commit, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    )
    cluster.on_node(node2, "mount", "-t", "tmpfs", "tmpfs", data)
    cluster.on_node(node2, "mount", "--bind", ROOT / ".venv", other_commit / ".venv")
    cluster.on_node(node2, "mount", "--rbind", other_commit, ROOT)
    try:
        output = failed_output(cluster, jobs, "--data-path", "0.5", data / "corpus")
    finally:
        for path in (ROOT, other_commit / ".venv", data):
            cluster.on_node(node2, "umount", "--recursive", path)
    assert f"preflight: error: {node2}: {data}/corpus.idx does not exist" in output
    other_code = f"{node2}: other code than the other nodes: commit {head.stdout[:12]} instead of"
    assert f"preflight: error: {other_code}" in output
    assert f"preflight: error: {node1}" not in output


@pytest.mark.slow
def test_blocked_port_of_one_node(cluster, jobs):
    node1, node2 = cluster.nodes
    rule = ["ipproto", "tcp", "dport", "20777", "blackhole"]
    cluster.on_node(node2, "ip", "rule", "add", *rule)
    try:
        output = failed_output(cluster, jobs, *MOCK, MASTER_PORT="20777", PREFLIGHT_TIMEOUT="15")
    finally:
        cluster.on_node(node2, "ip", "rule", "del", *rule)
    assert f"preflight: error: {node2}: cannot connect to {node1}:20777" in output
    assert f"preflight: error: {node2}: did not answer on {node1}:20777" in output


@pytest.mark.slow
def test_checkpoint_folder_of_its_own_on_one_node(cluster, jobs):
    node1, node2 = cluster.nodes
    folder = jobs.folder / "checkpoints"
    folder.mkdir()
    cluster.on_node(node2, "mount", "-t", "tmpfs", "tmpfs", folder)
    try:
        output = failed_output(cluster, jobs, *MOCK)
    finally:
        cluster.on_node(node2, "umount", folder)
    assert f"{node2}: checkpoint folder {folder} is not the one that {node1} has" in output
