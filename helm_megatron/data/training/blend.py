"""The datasets that a training command names, checked before anything starts."""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from helm_megatron.data.errors import DataError

SPLITS = ("train", "valid", "test")
IN_ONE = ("data_path", "data_args_path")
BY_SPLIT = (*(f"{split}_data_path" for split in SPLITS), "per_split_data_args_path")


def prefixes_of(args: argparse.Namespace) -> list[str]:
    """Return the prefix of every dataset that Megatron's data flags, and their files, name.

    Raises:
        DataError: a blend does not pair weights with datasets, a file or dataset is not there, or
            the flags contradict each other.
    """
    given = [name for name in (*IN_ONE, *BY_SPLIT) if getattr(args, name)]
    if not given:
        raise DataError("--data-path is missing: where the .bin and .idx files are")
    for first, second in zip(given, given[1:], strict=False):
        if first in IN_ONE or second == "per_split_data_args_path":
            raise DataError(f"{_flag(first)} and {_flag(second)}: pass one of them")
    prefixes = []
    for where, words in _blends(args):
        prefixes += parse_blend(words, where)
    for prefix in prefixes:
        for path in (Path(f"{prefix}.bin"), Path(f"{prefix}.idx")):
            if "://" not in prefix and not path.is_file():
                raise DataError(
                    f"{_flag(given[0])} {prefix}: there is no {path}; tools/preprocess_data.py"
                    " makes it"
                )
    return prefixes


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _blends(args: argparse.Namespace) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield where each blend is given, and its words."""
    for name in ("data_path", *BY_SPLIT[:3]):
        if getattr(args, name):
            yield _flag(name), getattr(args, name)
    if args.data_args_path:
        where = f"--data-args-path {args.data_args_path}"
        yield where, _read(args.data_args_path, where).split()
    if args.per_split_data_args_path:
        where = f"--per-split-data-args-path {args.per_split_data_args_path}"
        try:
            blends = json.loads(_read(args.per_split_data_args_path, where))
        except ValueError as error:
            raise DataError(f"{where}: not valid JSON: {error}") from error
        for split in SPLITS:
            blend = blends.get(split) if isinstance(blends, dict) else None
            words = blend.split() if isinstance(blend, str) else blend
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise DataError(f"{where}: '{split}' must be a list of strings, or one string")
            yield f"{where}, {split}", words


def _read(path: str, where: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{where}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not valid UTF-8") from error


def parse_blend(words: Sequence[str], where: str) -> list[str]:
    """Return the prefixes of a blend: datasets, or a weight before each of them.

    Raises:
        DataError: some have weights and some have none, or a weight is not positive.
    """
    weights = [_weight(word) for word in words]
    if not words:
        raise DataError(f"{where}: names no dataset")
    if weights[0] is None:
        for word, weight in zip(words, weights, strict=True):
            if weight is not None:
                raise DataError(
                    f"{where}: {words[0]} has no weight, but there is {word}; give all or none"
                )
        return list(words)
    for position, (word, weight) in enumerate(zip(words, weights, strict=True)):
        if position % 2 == 0 and weight is None:
            raise DataError(f"{where}: expected a weight before {word}")
        if position % 2 == 0 and not (weight and weight > 0 and math.isfinite(weight)):
            raise DataError(f"{where}: weight {word} must be a positive number")
        if position % 2 == 1 and weight is not None:
            raise DataError(f"{where}: expected a dataset after weight {words[position - 1]}")
    if len(words) % 2:
        raise DataError(f"{where}: expected a dataset after weight {words[-1]}")
    return list(words[1::2])


def _weight(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
