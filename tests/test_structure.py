"""The code keeps its shape: imports run one way, files and functions stay small."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for folder in ("helm_megatron", "tools", "tests", "benchmarks", "examples")
    for path in (ROOT / folder).rglob("*.py")
) + [ROOT / "pretrain_helm.py"]

# What each part of the package may import of the others.
MAY_IMPORT = {
    "geometry": set(),
    "kernels": {"geometry"},
    "config": set(),
    "layers": {"geometry", "kernels", "config"},
    "moe": {"geometry", "config", "kernels", "layers"},
    "optim": {"geometry", "kernels"},
    "specs": {"geometry", "config", "layers", "moe"},
    "model": {"geometry", "config", "layers", "moe", "specs"},
    "builder": {"model"},
    "arguments": {"config"},
    "data": {"__version__"},
    "evaluation": {"conversion", "data"},
    "plan": {
        *("arguments", "builder", "checks", "command_line", "layers", "moe", "platform"),
        *("pretrain", "process_groups", "specs"),
    },
    "commands": {
        *("analysis", "checks", "conversion", "data", "evaluation", "hf", "platform", "pretrain"),
    },
    # It imports the module of the command that is chosen, by name.
    "cli": set(),
    "verify": {
        *("arguments", "builder", "checks", "model", "moe", "optim", "platform", "pretrain"),
        "process_groups",
    },
    "hf": set(),
    "conversion": {
        *("analysis", "arguments", "builder", "checkpoint", "checks", "command_line", "config"),
        *("data", "geometry", "hf", "process_groups", "specs"),
    },
    "cluster": set(),
    "process_groups": set(),
    "command_line": {"checks", "pretrain"},
    "doctor": set(),
}


def imported_parts(path):
    """The parts of helm_megatron that a file imports."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if names == ["helm_megatron"]:
            names = [f"helm_megatron.{alias.name}" for alias in node.names]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        parts |= {name.split(".")[1] for name in names if name.startswith("helm_megatron.")}
    return parts


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_run_one_way(part):
    package = ROOT / "helm_megatron" / part
    files = sorted(package.rglob("*.py")) if package.is_dir() else [package.with_suffix(".py")]
    assert files
    for path in files:
        assert imported_parts(path) <= MAY_IMPORT[part] | {part}, path


def test_geometry_is_pure_torch():
    for path in (ROOT / "helm_megatron" / "geometry").glob("*.py"):
        assert "megatron" not in path.read_text().replace("helm_megatron", "")


def test_evaluation_tasks_stand_alone():
    """Where helm_megatron is not installed, lm-eval reads them from their folder."""
    assert not imported_parts(ROOT / "helm_megatron" / "evaluation" / "tasks" / "data.py")


def test_what_travels_with_a_checkpoint_imports_only_torch_and_transformers():
    for path in (ROOT / "helm_megatron" / "hf").glob("*_helm.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names = [f"helm.{n}" for n in names] if getattr(node, "level", 0) else names
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            roots = {name.split(".")[0] for name in names}
            assert roots <= {"copy", "helm", "math", "torch", "transformers"}, path


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_small(path):
    source = path.read_text()
    assert len(source.splitlines()) <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 60, node.name
