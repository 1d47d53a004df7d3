"""Forked processes do what those of a command line do, and have imported what takes long."""

import os
import sys

import pytest

from tests import forked

PROGRAM = """
import os, sys
if __name__ == "__main__":
    print(*sys.argv[1:], os.environ.get("HELM_TEST"), os.path.basename(os.getcwd()))
    print(os.path.basename(sys.path[0]), file=sys.stderr)
    if sys.argv[1] == "raise":
        raise ValueError("no such thing")
    sys.exit({"one": 1, "text": "error: words"}.get(sys.argv[1]))
"""


def imported(connection):
    connection.send(sorted(sys.modules))


def test_imports_are_done_before_the_fork():
    ours, theirs = forked.SERVER.Pipe()
    process = forked.start(imported, theirs)
    modules = ours.recv()
    process.join()
    assert {"helm_megatron.pretrain", "helm_megatron.conversion.to_hf", "datasets"} <= set(modules)


@pytest.mark.parametrize(
    ("how", "code", "last"),
    [
        ("well", 0, None),
        ("one", 1, None),
        ("text", 1, "error: words"),
        ("raise", 1, "ValueError: no such thing"),
    ],
)
def test_a_command_line(tmp_path, how, code, last):
    (tmp_path / "folder").mkdir()
    program = tmp_path / "folder" / "program.py"
    program.write_text(PROGRAM)
    done = forked.command(program, how, env={"HELM_TEST": "5"}, cwd=tmp_path)
    assert done.stdout == f"{how} 5 {tmp_path.name}\n"
    assert done.stderr.startswith("folder\n")
    assert done.returncode == code
    assert last is None or done.stderr.splitlines()[-1] == last
    assert "HELM_TEST" not in os.environ


def test_a_module_and_ranks(tmp_path):
    (tmp_path / "module.py").write_text("import os; print(os.environ['RANK'], __name__)")
    done = forked.commands("-m", "module", envs=forked.ranks(2), cwd=tmp_path)
    assert [each.stdout for each in done] == ["0 __main__\n", "1 __main__\n"]


def test_ports_are_other_ones_each_time():
    assert len({forked.free_port() for _ in range(50)}) == 50
