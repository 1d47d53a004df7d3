"""Every patch fits the installed Megatron, and is still needed; each failure names a patch."""

import ast
import hashlib
import importlib.util
import json
import pkgutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import probes
import pytest
import torch

from helm_megatron import megatron_patches
from helm_megatron.megatron_patches import EVERYWHERE, WITHOUT_CUDA, patch

PATCHES = WITHOUT_CUDA + EVERYWHERE
PROBED = list(probes.EVERYWHERE if torch.cuda.is_available() else probes.WITHOUT_CUDA)
PROBED += [name for name in probes.EVERYWHERE if name not in PROBED]
INSTALLED = f"Megatron {metadata.version('megatron-core')}"
FINGERPRINTS = [
    pytest.param(name, function, written_for, id=f"{name}: {function.rpartition('.')[2]}")
    for name in PATCHES
    for function, written_for in patch(name).UPSTREAM.items()
    if written_for is not None
]


def file_of(name: str) -> str:
    return f"helm_megatron/megatron_patches/{name.replace('.', '/')}.py"


def source_of(function: str) -> str:
    """The text of a function or class, decorators included; from its file, as it may be replaced.

    Raises:
        LookupError: there is none.
    """
    module, inside = function, []
    while (spec := _spec(module)) is None:
        module, _, name = module.rpartition(".")
        inside.insert(0, name)
        if not module:
            raise LookupError(function)
    text = Path(spec.origin).read_text()
    node: ast.AST = ast.parse(text)
    for name in inside:
        found = [n for n in ast.iter_child_nodes(node) if getattr(n, "name", None) == name]
        if not found:
            raise LookupError(function)
        node = found[-1]
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return "\n".join(text.splitlines()[first - 1 : node.end_lineno])


def _spec(module: str):
    try:
        return importlib.util.find_spec(module)
    except ModuleNotFoundError:  # what is before the last dot is no package
        return None


def fingerprint(function: str) -> str:
    """Of the source of a function, as UPSTREAM has it."""
    return hashlib.sha256(source_of(function).encode()).hexdigest()[:12]


def test_every_module_is_listed():
    root = Path(megatron_patches.__file__).parent
    modules = {m.name for m in pkgutil.iter_modules([str(root)]) if not m.ispkg} - {"replace"}
    modules |= {f"cpu.{m.name}" for m in pkgutil.iter_modules([str(root / "cpu")])}
    assert sorted(PATCHES) == sorted(modules)


@pytest.mark.parametrize("name", PATCHES)
def test_says_what_upstream_does_why_it_is_replaced_and_until_when(name):
    text = patch(name).__doc__
    for word in ("\nUpstream: ", "\nHere: ", "\nGoes: "):
        assert word in text, f"{file_of(name)}: its docstring has no{word.strip()}"
    assert any(patch(name).UPSTREAM.values()) or name in probes.WITHOUT_CUDA | probes.EVERYWHERE, (
        f"{file_of(name)}: neither a fingerprint nor a probe tells when it no longer fits"
    )


@pytest.mark.parametrize(("name", "function", "written_for"), FINGERPRINTS)
def test_fits_the_installed_megatron(name, function, written_for):
    try:
        found = fingerprint(function)
    except LookupError:
        pytest.fail(f"{file_of(name)}: {INSTALLED} has no {function}", pytrace=False)
    if found != written_for:
        pytest.fail(
            f"{file_of(name)}: {function} of {INSTALLED} is not what the patch was written for; "
            f"compare them, mend the patch or drop it, then set its fingerprint to {found}",
            pytrace=False,
        )


@pytest.fixture(scope="module")
def unpatched():
    """What the probes say in a process of their own."""
    command = [sys.executable, "-W", "ignore", probes.__file__]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", PROBED)
def test_is_still_needed(unpatched, name):
    if reason := unpatched[name]:
        pytest.fail(f"{file_of(name)}: {reason} ({INSTALLED}, torch {torch.__version__})", False)
