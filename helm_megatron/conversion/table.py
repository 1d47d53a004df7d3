"""Tables of names: which tensors of another model hold which parameters of Megatron's.

A rule names both sides and converts both ways; `*` in a name stands for the index of a layer or an
expert. "Ours" are Megatron's names, "theirs" those of the other side: Hugging Face's (`hf_names`)
or the authors' release (`release.names`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from helm_megatron.errors import HelmError

_INDEX = re.compile(r"(?<=\.)\d+(?=\.)")


class MappingError(HelmError):
    """Tensors that do not make up a model; the message is one line that names the first."""


@dataclass(frozen=True)
class Rule[Config]:
    """Tensors of theirs and the parameters of ours that hold the same numbers.

    `load` makes the latter of the former and `save` is its inverse; both take the config of the
    model and tensors in the order of the names.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    load: Callable[[Config, list[Tensor]], list[Tensor]]
    save: Callable[[Config, list[Tensor]], list[Tensor]]

    def at(self, indices: list[str]) -> Rule[Config]:
        """The rule of one layer, or of one expert of it."""
        theirs = tuple(_at(name, indices) for name in self.theirs)
        return Rule(theirs, tuple(_at(name, indices) for name in self.ours), self.load, self.save)


@dataclass(frozen=True)
class Rows[Config]:
    """How the rows (dimension 0) of several tensors of theirs lie in one of ours."""

    join: Callable[[Config, list[Tensor]], Tensor]
    split: Callable[[Config, Tensor], list[Tensor]]


SAME: Rows = Rows(lambda config, parts: parts[0], lambda config, rows: [rows])
GATE_UP: Rows = Rows(lambda config, parts: torch.cat(parts), lambda config, rows: [*rows.chunk(2)])


def same(theirs: str, ours: str) -> Rule:
    """The same tensor under two names."""
    return Rule(
        (theirs,), (ours,), lambda config, tensors: tensors, lambda config, tensors: tensors
    )


def joined(theirs: Iterable[str], ours: str, rows: Rows) -> Rule:
    """Tensors that are one of ours together."""
    return Rule(
        tuple(theirs),
        (ours,),
        lambda config, parts: [rows.join(config, parts)],
        lambda config, tensors: rows.split(config, tensors[0]),
    )


def pattern(name: str) -> str:
    """A name with `*` for every index in it."""
    return _INDEX.sub("*", name)


def found[Config](
    rules: Iterable[Rule[Config]], names: Iterable[str], side: Literal["theirs", "ours"]
) -> list[Rule[Config]]:
    """The rules without `*` for all the names of one side, in their order.

    Raises:
        MappingError: for a name that no rule has, or a part without its others.
    """
    owner = {name: rule for rule in rules for name in getattr(rule, side)}
    given = dict.fromkeys(names)
    result: dict[str, Rule[Config]] = {}
    for name in given:
        rule = owner.get(pattern(name))
        if rule is None:
            raise MappingError(f"unknown parameter {name}: not of this HELM architecture")
        one = rule.at(_INDEX.findall(name))
        if missing := [part for part in getattr(one, side) if part not in given]:
            raise MappingError(f"{missing[0]} is missing, which belongs to {name}")
        result.setdefault(one.ours[0], one)
    return list(result.values())


def _at(name: str, indices: list[str]) -> str:
    left = iter(indices)
    return re.sub(r"\*", lambda _: next(left), name)
