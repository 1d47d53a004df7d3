"""The code keeps its shape: imports run one way, files and functions stay small."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for folder in ("helm_megatron", "tools", "tests", "benchmarks", "examples")
    for path in (ROOT / folder).rglob("*.py")
) + [ROOT / "pretrain_helm.py"]


def imports_of_the_map():
    """What each part may import of the others, by the table of docs/architecture.md."""
    rows = re.findall(
        r"^\| `(\w+)` \| .+ \| (nothing|(?:`\w+`(?:, )?)+) \|$",
        (ROOT / "docs" / "architecture.md").read_text(),
        re.MULTILINE,
    )
    return {part: set(re.findall(r"\w+", others)) - {"nothing"} for part, others in rows}


MAY_IMPORT = imports_of_the_map()


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
    found = {path: imported_parts(path) - {part, "__version__"} for path in files}
    for path in files:
        assert found[path] <= MAY_IMPORT[part], path
    assert MAY_IMPORT[part] == set().union(*found.values()), "the map lists what is not imported"


def test_every_part_is_on_the_map():
    paths = (ROOT / "helm_megatron").iterdir()
    parts = {path.stem for path in paths if not path.name.startswith("__")}
    assert parts == MAY_IMPORT.keys()


def modules_imported(path, modules):
    """Those of the package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & modules.keys() or {node.module}
    return found & modules.keys()


def test_no_modules_of_the_hyperbolic_parts_import_in_a_circle():
    package = ROOT / "helm_megatron"
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for part in ("geometry", "kernels", "layers", "moe", "optim")
        for path in (package / part).rglob("*.py")
    }
    graph = {name: modules_imported(path, modules) for name, path in modules.items()}
    assert tuple(TopologicalSorter(graph).static_order())


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
            assert roots <= {"copy", "difflib", "helm", "math", "torch", "transformers"}, path


def test_what_users_can_mend_has_one_base_class():
    for path in (ROOT / "helm_megatron").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                base = "Exception" if node.name == "HelmError" else "HelmError"
                assert [ast.unparse(found) for found in node.bases] == [base], path


def imported_from(tree, roots):
    """Names that a file has imported from these packages."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in roots:
            names |= {alias.asname or alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found = (alias.asname or alias.name.split(".")[0] for alias in node.names)
            names |= {name for name in found if name in roots}
    return names


def test_only_patches_replace_parts_of_torch_and_megatron():
    for path in (ROOT / "helm_megatron").rglob("*.py"):
        tree = ast.parse(path.read_text())
        imported = imported_from(tree, {"torch", "megatron"})
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                owner = ast.unparse(node.value).split(".")[0]
                assert owner not in imported or "megatron_patches" in path.parts, (
                    path,
                    node.lineno,
                )


def test_programs_replace_nothing_by_mocks():
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] != "tests":
            assert "unittest" not in path.read_text(), path


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_small(path):
    source = path.read_text()
    assert len(source.splitlines()) <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 60, node.name
