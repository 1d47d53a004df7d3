"""A study's TOML file: variants, learning rates, seeds, and the runs that they make."""

from __future__ import annotations

import math
import os
import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helm_megatron.study.errors import StudyError

# Keys of the file, and the kind of each value.
_KEYS: dict[str, type | tuple[type, ...]] = {
    "baseline": str,
    "seeds": list,
    "selection_seeds": list,
    "learning_rates": list,
    "min_lr_ratio": (int, float),
    "flags": str,
    "tasks": list,
    "sizes": dict,
    "variants": dict,
}
_OPTIONAL = {"min_lr_ratio", "tasks"}
# What the study itself passes.
_OWN_FLAGS = ("--seed", "--lr", "--min-lr", "--save", "--load", "--tensorboard-dir")


@dataclass(frozen=True)
class Run:
    """One training: a variant at a learning rate with a seed.

    Attributes:
        number: among all runs of the study; those that select learning rates come first.
        learning_rate: None for a run at the rate that is selected.
    """

    number: int
    variant: str
    seed: int
    learning_rate: float | None


@dataclass(frozen=True)
class Variant:
    """What is compared: flags beside those of all, and the variant that it is compared with."""

    name: str
    flags: tuple[str, ...]
    baseline: str


@dataclass(frozen=True)
class Study:
    """A study at one of its sizes.

    Attributes:
        flags: of `pretrain_helm.py`, of all runs.
        processes: of each run, by torchrun where there are several.
        seeds: of the runs that are reported.
        selection_seeds: of those that select a learning rate for each variant.
        min_lr_ratio: `--min-lr` as a part of `--lr`.
        tasks: question sets that the models of the reported runs answer, as for `evaluate`.
    """

    name: str
    size: str
    flags: tuple[str, ...]
    processes: int
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    selection_seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    min_lr_ratio: float
    tasks: tuple[str, ...] = ()

    def selections(self) -> list[Run]:
        """The runs that select learning rates; none where there is only one rate."""
        if len(self.learning_rates) == 1:
            return []
        triples = [
            (variant.name, seed, rate)
            for variant in self.variants
            for rate in self.learning_rates
            for seed in self.selection_seeds
        ]
        return [Run(number, *triple) for number, triple in enumerate(triples)]

    def reports(self) -> list[Run]:
        """The runs that are reported."""
        first = len(self.selections())
        pairs = [(variant.name, seed) for seed in self.seeds for variant in self.variants]
        return [Run(first + number, *pair, None) for number, pair in enumerate(pairs)]

    def command_flags(self, run: Run, rate: float) -> list[str]:
        """The flags of a run at a learning rate, its folder's apart."""
        [variant] = [v for v in self.variants if v.name == run.variant]
        own = ["--seed", str(run.seed), "--lr", f"{rate:g}"]
        own += ["--min-lr", f"{rate * self.min_lr_ratio:g}"]
        return [*self.flags, *variant.flags, *own]


def read(path: Path, size: str | None) -> Study:
    """The study of a file, at a size, or the first one that the file has.

    Raises:
        StudyError: naming what is missing, unknown or of the wrong kind.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise StudyError(f"{path} is no TOML: {error}") from error
    _check_keys(path, data)
    sizes = data["sizes"]
    size = size or next(iter(sizes))
    if size not in sizes:
        raise StudyError(f"{path} has no size {size}: it has {', '.join(sizes)}")
    _check_name(path, "size", size)
    parts = _table(path, f"sizes.{size}", sizes[size])
    processes = _positive(path, f"sizes.{size}.processes", parts.pop("processes", 1))
    variants = tuple(_variant(path, data, name, parts) for name in data["variants"])
    names = [variant.name for variant in variants]
    for variant in variants:
        if variant.baseline not in names:
            raise StudyError(
                f"{path}: {variant.name} is compared with {variant.baseline!r}: no such"
            )
    seeds, selecting = (_numbers(path, data, key, int) for key in ("seeds", "selection_seeds"))
    if set(seeds) & set(selecting):
        raise StudyError(
            f"{path}: a seed selects learning rates and is reported too: the choice would favour "
            "what it had luck with; selection_seeds must be others"
        )
    ratio = data.get("min_lr_ratio", 0.1)
    if not 0 <= ratio <= 1:
        raise StudyError(f"{path}: min_lr_ratio is {ratio!r}, not a part of the rate: from 0 to 1")
    flags = _flags(path, "flags", data["flags"], parts)
    return Study(
        name=path.stem,
        size=size,
        flags=flags,
        processes=processes,
        variants=variants,
        seeds=seeds,
        selection_seeds=selecting,
        learning_rates=_numbers(path, data, "learning_rates", (int, float)),
        min_lr_ratio=float(ratio),
        tasks=_tasks(path, data.get("tasks", []), flags),
    )


def _tasks(path: Path, names: list[Any], flags: tuple[str, ...]) -> tuple[str, ...]:
    if not all(isinstance(name, str) and name and "," not in name for name in names):
        raise StudyError(f"{path}: tasks is {names!r}, not a list of lm-eval's tasks")
    if names and "--save-interval" not in flags:
        raise StudyError(f"{path}: tasks need the trained model: add --save-interval to the flags")
    return tuple(names)


def _check_keys(path: Path, data: dict[str, Any]) -> None:
    if missing := [key for key in _KEYS if key not in data and key not in _OPTIONAL]:
        raise StudyError(f"{path} lacks {missing[0]}")
    for key, value in data.items():
        if key not in _KEYS:
            raise StudyError(f"{path} has {key!r}, which is no setting: {', '.join(_KEYS)}")
        if not isinstance(value, _KEYS[key]) or isinstance(value, bool):
            raise StudyError(f"{path}: {key} is {value!r}, which is not of its kind")
    for key in ("sizes", "variants"):
        if not data[key]:
            raise StudyError(f"{path}: {key} is empty")


def _check_name(path: Path, what: str, name: str) -> None:
    """Refuse a name that cannot be that of a folder of its own."""
    if not re.fullmatch(r"(?=.*\w)[\w.-]+", name):
        raise StudyError(
            f"{path}: {what} {name!r}: letters, digits, '.', '-' and '_' only, and not dots alone"
        )


def _variant(path: Path, data: dict[str, Any], name: str, parts: dict[str, Any]) -> Variant:
    _check_name(path, "variant", name)
    table = _table(path, f"variants.{name}", data["variants"][name])
    if unknown := table.keys() - {"flags", "baseline"}:
        raise StudyError(f"{path}: variants.{name} has {unknown.pop()!r}: only flags and baseline")
    flags = _flags(path, f"variants.{name}.flags", table.get("flags", ""), parts)
    return Variant(name, flags, table.get("baseline", data["baseline"]))


def _table(path: Path, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise StudyError(f"{path}: {name} is {value!r}, not a table")
    return dict(value)


def _flags(path: Path, name: str, value: Any, parts: dict[str, Any]) -> tuple[str, ...]:
    """Flags of a text; `{part}` is replaced by what the size calls so, `$NAME` by the shell's."""
    if not isinstance(value, str):
        raise StudyError(f"{path}: {name} is {value!r}, not flags as a text")

    def replaced(match: re.Match) -> str:
        part, variable = match.groups()
        if part is not None and isinstance(parts.get(part), str):
            return parts[part]
        if variable is not None and variable in os.environ:
            return os.environ[variable]
        missing = f"the size has no text {part}" if part else f"export {variable}=... first"
        raise StudyError(f"{path}: {name} has {match[0]}: {missing}")

    once = re.sub(r"\{(\w+)\}|\$(\w+)", replaced, value)
    try:
        words = shlex.split(re.sub(r"\{(\w+)\}|\$(\w+)", replaced, once), comments=True)
    except ValueError as error:  # a quotation without an end
        raise StudyError(f"{path}: {name} is no command line: {error}") from error
    for word in words:
        if "\0" in word:
            raise StudyError(f"{path}: {name} has a word with a NUL character")
        if word.partition("=")[0] in _OWN_FLAGS:
            raise StudyError(f"{path}: {name} has {word!r}, which the study passes itself")
    return tuple(words)


def _numbers(path: Path, data: dict[str, Any], key: str, kind: Any) -> tuple:
    values = data[key]
    if not values or not all(isinstance(v, kind) and not isinstance(v, bool) for v in values):
        raise StudyError(f"{path}: {key} is {values!r}, not a list of numbers")
    if len(set(values)) < len(values):
        raise StudyError(f"{path}: {key} names a number twice: {values!r}")
    if key == "learning_rates" and not all(0 < value < math.inf for value in values):
        raise StudyError(f"{path}: {key} must be positive and finite: {values!r}")
    if kind is int and not all(0 <= value < 2**31 for value in values):
        raise StudyError(f"{path}: {key} must be from 0 to below 2^31: {values!r}")
    return tuple(values)


def _positive(path: Path, name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise StudyError(f"{path}: {name} is {value!r}, not a number from 1 on")
    return value
