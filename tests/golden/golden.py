"""Reading the golden data: outputs and gradients of the authors' implementation of HELM."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).resolve().parent
RTOL = {torch.float64: 1e-9, torch.float32: 1e-4}


def golden_dir() -> Path | None:
    """The folder of the golden files, or None where there is none.

    $HELM_GOLDEN_DIR, else tests/golden/data, else ../shared/golden beside the repository.
    """
    if named := os.environ.get("HELM_GOLDEN_DIR"):
        if not Path(named).is_dir():
            raise FileNotFoundError(f"HELM_GOLDEN_DIR={named} is not a folder; unset or correct it")
        return Path(named)
    for folder in (HERE / "data", HERE.parents[2] / "shared" / "golden"):
        if folder.is_dir():
            return folder
    return None


def load(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON of the golden file `name` (without suffix); skips the test if missing."""
    folder = golden_dir()
    if folder is None or not (folder / f"{name}.safetensors").is_file():
        pytest.skip(f"no golden file {name}.safetensors in {folder or 'any golden folder'}")
    info = json.loads((folder / f"{name}.json").read_text())
    return load_file(folder / f"{name}.safetensors"), info


def load_case(name: str, case: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of one case of a module file, their names less the case's, and its JSON entry."""
    tensors, info = load(name)
    prefix = case + "/"
    found = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
    return found, info["cases"][case]


def cases(name: str) -> list[Any]:
    """Cases of a module file to parametrize a test with; one skipped case if it is missing."""
    folder = golden_dir()
    path = folder / f"{name}.json" if folder else None
    if path is None or not path.is_file():
        return [pytest.param("", id=name, marks=pytest.mark.skip(f"no golden file {name}"))]
    return [pytest.param(case, id=case) for case in json.loads(path.read_text())["cases"]]


def assert_close(
    actual: Tensor, expected: Tensor, rtol: float = 1e-9, atol: float = 0.0, what: str = "tensor"
) -> None:
    """Assert max|actual - expected| <= rtol * max|expected| + atol; `what` names it on failure."""
    assert actual.shape == expected.shape, f"{what}: {actual.shape} is not {expected.shape}"
    if not expected.numel():
        return
    error = (actual.double() - expected.double()).abs().max().item()
    size = expected.double().abs().max().item()
    assert error <= rtol * size + atol, (
        f"{what}: off by {error:.3e}, {error / size if size else float('inf'):.1e} of its largest "
        f"entry {size:.3e}; allowed {rtol:.0e} of it plus {atol:.0e}"
    )
