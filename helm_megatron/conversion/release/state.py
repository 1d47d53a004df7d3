"""What a release's tensors say beside the parameters, against the arguments and each other.

The importer computes with one curvature for embeddings, hidden states and logits each, and with a
rotary table of its own. The file has them many times over, under names that the importer does not
read (`names.IGNORED`): they must say the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from helm_megatron.conversion.release.config import is_dense

_CURVATURE = re.compile(r"(.*\.)?(c|manifold(_\w+)?\.[kc]|expert_manifold\.[kc])")
_EXPERT = re.compile(r"(.*\.experts\.\d+)\.(expert_manifold|w[123])\..*")
# Largest difference of what is the same number, relative; files are in fp32 or bf16.
_SAME = 1e-2


def check_arguments(released: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Refuse arguments that the tensors contradict and that shapes alone would not show.

    Args:
        released: as `arguments.checked` returns them.

    Raises:
        ValueError: naming the argument, or the tensor.
    """
    points = any(name.endswith("embed.embedding") for name in state)
    if released.get("project_emb", not points) == points:
        kind = "points of the hyperboloid" if points else "a Euclidean table"
        raise ValueError(
            f"project_emb is {str(points).lower()}, but the tensors have {kind} (the authors' "
            f"parser takes the word False for true): write {str(not points).lower()}"
        )
    rows = next((len(t) for n, t in state.items() if n in ("head.weight", "mapping.weight")), None)
    if rows is not None and released.get("vocab_size", rows) != rows:
        raise ValueError(f"vocab_size is {released['vocab_size']}, the tensors have {rows} rows")
    names = ("manifold_in.k", "manifold_hidden.k", "manifold_out.k")
    for name, given in zip(names, released.get("curvatures", ()), strict=False):
        if not _close(float(given), float(state[name])):
            raise ValueError(f"curvatures has {given}, but {name} is {float(state[name]):g}")
    _check_curvatures(state)


def rotary_base(released: Mapping[str, Any], state: Mapping[str, Tensor]) -> float:
    """The base of the rotary angles: what the arguments say and the file's table, if any, shows.

    Raises:
        ValueError: the two are not the same, or the table is none.
    """
    base = float(released.get("rope_theta", 10000.0))
    for name in ("freqs_complex", "freqs_cis"):
        if name in state or f"{name}.real" in state:
            _check_table(name, _table(state, name), base)
    return base


def _check_curvatures(state: Mapping[str, Tensor]) -> None:
    dense = is_dense(state)
    for name, tensor in state.items():
        if not _CURVATURE.fullmatch(name):
            continue
        owner = _owner(name, dense)
        if owner in state and not _close(float(tensor), float(state[owner])):
            raise ValueError(
                f"{name} is {float(tensor):g} and {owner} {float(state[owner]):g}: in the released "
                "models they are one curvature, and here too"
            )


def _owner(name: str, dense: bool) -> str:
    """The curvature of which a released entry is another name."""
    if name.startswith("manifold_"):
        return name[:-1] + "k"
    # The result of an expert is brought back to the hidden curvature.
    if (expert := _EXPERT.fullmatch(name)) and ".w2.manifold_out." not in name:
        return f"{expert[1]}.expert_manifold.k"
    if re.match(r"(token_)?embed\.(manifold_in|add_pos)\.", name):
        return "manifold_in.k"
    if not dense and re.match(r"(final_proj\.manifold_out|norm)\.", name):
        return "manifold_out.k"
    return "manifold_hidden.k"


def _table(state: Mapping[str, Tensor], name: str) -> Tensor:
    """The angles of position 1, `[pairs]`."""
    if name not in state:
        real, imaginary = state[f"{name}.real"], state[f"{name}.imag"]
    elif state[name].is_complex():
        real, imaginary = state[name].real, state[name].imag
    else:
        raise ValueError(
            f"{name} is not complex: a cast to another type has cut the sines off; take it out of "
            "the file if the model was not used so"
        )
    return torch.atan2(imaginary[1].double(), real[1].double())


def _check_table(name: str, angles: Tensor, base: float) -> None:
    pairs = torch.arange(len(angles), dtype=torch.float64)
    expected = base ** (-pairs / len(angles))
    if (angles - expected).abs().max() > _SAME * expected.min():
        # The angle of pair 1 of n is base^(-1 / n).
        positive = len(angles) > 1 and angles[1] > 0
        found = f"{angles[1].item() ** -len(angles):.6g}" if positive else "none"
        raise ValueError(
            f"{name} is not the rotary table of rope_theta {base:g}: its own base is {found}; "
            "give that as rope_theta if it is the model's"
        )


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= _SAME * max(abs(one), abs(other))
