"""The datasets that a training command names, checked before anything starts."""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helm_megatron.data.errors import DataError
from helm_megatron.data.split import SPLITS

IN_ONE = ("data_path", "data_args_path")
BY_SPLIT = (*(f"{split}_data_path" for split in SPLITS), "per_split_data_args_path")


@dataclass(frozen=True)
class Blend:
    """Datasets, and how much is drawn of each; `where` names the flag. Without weights each is
    used once, as it is."""

    where: str
    prefixes: list[str]
    weights: list[float] | None

    @property
    def for_megatron(self) -> tuple[list[str], list[float] | None]:
        """What Megatron makes of the flag, were it to read it."""
        return self.prefixes, self.weights


@dataclass(frozen=True)
class Blends:
    """What the data flags name: a blend that --split divides, or one for each part (or none)."""

    divided: Blend | None
    parts: dict[str, Blend | None]

    @property
    def all(self) -> list[Blend]:
        """Every blend there is."""
        return [blend for blend in (self.divided, *self.parts.values()) if blend]


def blends_of(args: argparse.Namespace) -> Blends:
    """Read Megatron's data flags, and the files that they name.

    Raises:
        DataError: a blend does not pair weights with datasets, a file is not there, or the flags
            contradict each other.
    """
    given = [name for name in (*IN_ONE, *BY_SPLIT) if getattr(args, name)]
    if not given:
        raise DataError("--data-path is missing: where the .bin and .idx files are")
    for first, second in zip(given, given[1:], strict=False):
        if first in IN_ONE or second == "per_split_data_args_path":
            raise DataError(f"{_flag(first)} and {_flag(second)}: pass one of them")
    blends = {part: parse_blend(words, where) for part, where, words in _blends(args)}
    parts = {part: blends.get(part) for part in SPLITS}
    return Blends(blends.get(None), parts)


def prefixes_of(args: argparse.Namespace) -> list[str]:
    """Return the prefix of every dataset that the data flags name; their files are there.

    Raises:
        DataError: as `blends_of`, or a dataset is not there.
    """
    prefixes = []
    for blend in blends_of(args).all:
        for prefix in blend.prefixes:
            for path in (Path(f"{prefix}.bin"), Path(f"{prefix}.idx")):
                if not is_remote(prefix) and not path.is_file():
                    flag = blend.where.split()[0]
                    raise DataError(
                        f"{flag} {prefix}: there is no {path}; tools/preprocess_data.py makes it"
                    )
        prefixes += blend.prefixes
    return prefixes


def is_remote(prefix: str) -> bool:
    """Whether a dataset lies in object storage, which Megatron reads without our checks."""
    return "://" in prefix


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _blends(args: argparse.Namespace) -> Iterator[tuple[str | None, str, Sequence[str]]]:
    """Yield each blend's part (None: --split divides it), where it is given, and its words."""
    for part, name in zip((None, *SPLITS), ("data_path", *BY_SPLIT[:3]), strict=True):
        if getattr(args, name):
            yield part, _flag(name), getattr(args, name)
    if args.data_args_path:
        where = f"--data-args-path {args.data_args_path}"
        yield None, where, _read(args.data_args_path, where).split()
    if args.per_split_data_args_path:
        where = f"--per-split-data-args-path {args.per_split_data_args_path}"
        try:
            blends: Any = json.loads(_read(args.per_split_data_args_path, where))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not valid JSON: {error}") from error
        if not isinstance(blends, dict) or not blends.keys() <= set(SPLITS):
            raise DataError(
                f"{where}: must be an object in which 'train' must be a list of strings, or one"
                " string; 'valid' and 'test' likewise, or left out"
            )
        for part in SPLITS:
            blend = blends.get(part)
            if blend is None:
                continue  # there is no such data
            words = blend.split() if isinstance(blend, str) else blend
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise DataError(f"{where}: '{part}' must be a list of strings, or one string")
            yield part, f"{where}, {part}", words


def _read(path: str, where: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{where}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not valid UTF-8") from error


def parse_blend(words: Sequence[str], where: str) -> Blend:
    """Return the blend of a list: datasets, or a weight before each of them.

    Raises:
        DataError: some have weights and some have none, a weight is not positive, or a name is
            empty.
    """
    weights = [_weight(word) for word in words]
    if not words:
        raise DataError(f"{where}: names no dataset")
    if "" in [word.strip() for word in words]:
        raise DataError(f"{where}: an empty name of a dataset")
    if weights[0] is None:
        for word, weight in zip(words, weights, strict=True):
            if weight is not None:
                raise DataError(
                    f"{where}: {words[0]} has no weight, but there is {word}; give all or none"
                )
        return Blend(where, list(words), None)
    for position, (word, weight) in enumerate(zip(words, weights, strict=True)):
        if position % 2 == 0 and weight is None:
            raise DataError(f"{where}: expected a weight before {word}")
        if position % 2 == 0 and not (weight and weight > 0 and math.isfinite(weight)):
            raise DataError(f"{where}: weight {word} must be a positive number")
        if position % 2 == 1 and weight is not None:
            raise DataError(f"{where}: expected a dataset after weight {words[position - 1]}")
    if len(words) % 2:
        raise DataError(f"{where}: expected a dataset after weight {words[-1]}")
    return Blend(where, list(words[1::2]), [weight for weight in weights[::2] if weight])


def _weight(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
