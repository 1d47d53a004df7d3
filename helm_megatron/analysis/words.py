"""Words and what they are a kind of, from a text file, as points of a model's embedding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helm_megatron.errors import HelmError
from helm_megatron.geometry import lorentz


class WordsError(HelmError):
    """A file of words that cannot be used; the message is one line."""


@dataclass
class Words:
    """Words, and for some of them the index of the parent."""

    names: list[str]
    edges: list[tuple[int, int]]


def read_words(path: Path) -> Words:
    """Read a word a line, with its parent after a tab; lines with # are comments.

    Raises:
        WordsError: the file cannot be read, or a parent is not among the words.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WordsError(f"--words {path}: {error}") from error
    lines = [line.split("\t") for line in text.splitlines() if line and not line.startswith("#")]
    names = [line[0] for line in lines]
    if len(names) < 3 or len(set(names)) < len(names):
        raise WordsError(f"--words {path}: needs three words or more, each once")
    edges = []
    for child, (_, *parents) in enumerate(lines):
        for parent in parents:
            if parent not in names:
                raise WordsError(f"--words {path}: {parent!r} is a parent, but not a word")
            edges.append((child, names.index(parent)))
    return Words(names, edges)


def points_of(words: Words, tokenizer: Any, table: Tensor, c: float) -> Tensor:
    """Points `[n, d]` of the words: of one with several tokens their Lorentz centroid."""
    points = []
    for name in words.names:
        ids = tokenizer(f" {name}", add_special_tokens=False).input_ids
        points.append(lorentz.centroid(table[ids].double(), None, c))
    return torch.stack(points)
