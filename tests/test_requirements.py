"""requirements/ is what pyproject.toml admits, complete with hashes, and names no registry."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
WANTED = {
    "run": [*PROJECT["dependencies"], *EXTRAS["eval"]],
    "test": [*PROJECT["dependencies"], *EXTRAS["eval"], *EXTRAS["deepspeed"], *EXTRAS["dev"]],
}


def locked(name):
    """Version by package of requirements/NAME.txt."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    pairs = re.findall(r"^([a-z0-9.-]+)==(\S+)", text, re.MULTILINE)
    assert len(pairs) == len(dict(pairs)), "a package has two versions"
    return dict(pairs)


@pytest.mark.parametrize("name", WANTED)
def test_versions_are_within_the_ranges(name):
    versions = locked(name)
    for requirement in map(Requirement, WANTED[name]):
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not locked: make lock"
        assert version in requirement.specifier, f"{requirement}, locked {version}: make lock"


def test_the_tests_run_with_what_users_run():
    assert locked("run").items() <= locked("test").items()


@pytest.mark.parametrize("name", ["uv", "build", *WANTED])
def test_every_line_is_a_version_with_hashes(name):
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    pattern = r"[a-z0-9.-]+==\S+( ; .+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?"
    others = [line for line in lines if not re.fullmatch(pattern, line)]
    assert others == ["# Written by `make lock`."]
    ends = [i for i, line in enumerate(lines) if "==" in line and "--hash" not in lines[i + 1]]
    assert not ends


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_every_range_has_both_ends(extra):
    """Or a release that was never tested is let in."""
    for line in EXTRAS[extra] if extra else PROJECT["dependencies"]:
        operators = {specifier.operator for specifier in Requirement(line).specifier}
        assert operators == {">=", "<"}, line
