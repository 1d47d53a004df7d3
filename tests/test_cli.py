"""The one command: what it offers, what it imports for that, and the scripts of the same name."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from helm_megatron import cli

ROOT = Path(__file__).parents[1]
# These ask Megatron for its flags, or every node of a job for a report.
SLOW = {"pretrain", "build-data-cache", "verify", "preflight"}
HELP = """
import sys
from helm_megatron import cli
for arguments in {arguments!r}:
    try:
        cli.main([*arguments, "--help"])
    except SystemExit as end:
        assert end.code == 0, arguments
print("imported:", *sys.modules.keys() & {{"torch", "transformers", "matplotlib", "megatron"}})
"""


def helped(*arguments):
    """What `--help` of each says, in a process that ends with the slow modules it imported."""
    code = HELP.format(arguments=[[a] if a else [] for a in arguments])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_lists_every_command():
    said = helped("")
    for name, (_, what) in cli.COMMANDS.items():
        assert f"  {name} " in said and what in said
    assert said.endswith("imported:\n")


def test_help_of_a_command_imports_nothing_slow():
    names = [name for name in cli.COMMANDS if name not in SLOW]
    said = helped(*names)
    for name in names:
        assert f"usage: helm-megatron {name} " in said
    assert said.endswith("imported:\n")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_a_module(name):
    module = f"helm_megatron.{cli.COMMANDS[name][0]}"
    assert importlib.util.find_spec(module) is not None


def test_scripts_are_commands():
    """Each script of tools/ runs the command that its first line names."""
    scripts = [*(ROOT / "tools").glob("*.py"), ROOT / "tools" / "checkpoint" / "convert.py"]
    modules = {path.stem: path.read_text() for path in scripts}
    offered = {module: name for name, (module, _) in cli.COMMANDS.items()}
    assert {f"commands.{stem}" for stem in modules} == {m for m in offered if "commands." in m}
    for stem, text in modules.items():
        assert f"`helm-megatron {offered[f'commands.{stem}']}`" in text
        assert f"from helm_megatron.commands.{stem} import main" in text


def test_arguments_and_exit_code_are_the_commands(monkeypatch):
    seen = []
    monkeypatch.setattr("helm_megatron.doctor.main", lambda: seen.append(sys.argv) or 3)
    monkeypatch.setattr(sys, "argv", ["helm-megatron", "doctor", "--timeout", "1"])
    assert cli.main() == 3
    assert seen == [["helm-megatron doctor", "--timeout", "1"]]


def test_unknown_command(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["prepocess"])
    assert end.value.code == 2
    assert "helm-megatron: error: argument COMMAND: invalid choice: 'prepocess'" in (
        capsys.readouterr().err
    )
