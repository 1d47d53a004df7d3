"""Texts that tell two tokenizers apart: of all scripts, marks, spaces, pieces of the model."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Sequence
from typing import Literal

# Code points of scripts, marks, symbols and controls; the first and the last of each.
_RANGES = (
    (0x20, 0x7E),
    (0xA0, 0x24F),
    (0x300, 0x36F),
    (0x370, 0x52F),
    (0x531, 0x5F4),
    (0x600, 0x6FF),
    (0x900, 0xD7F),
    (0xE01, 0xE5B),
    (0x1100, 0x11FF),
    (0x1E00, 0x1FFF),
    (0x2000, 0x206F),
    (0x2070, 0x2BFF),
    (0x3000, 0x30FF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0xF900, 0xFAFF),
    (0xFB00, 0xFDFF),
    (0xFE00, 0xFFEF),
    (0x1D400, 0x1D7FF),
    (0x1F300, 0x1FAFF),
    (0x1, 0x1F),
)
_SPACES = (" ", "  ", "   ", "\n", "\t", "\r\n", "\u2581", "\u3000", "\u00a0", "\u200b", "\u2581 ")


def probes(count: int, seed: int, pieces: Sequence[str] = ()) -> list[str]:
    """So many texts, the same for the same arguments; some are made of `pieces` of the model."""
    generator = random.Random(seed)
    return [_text(generator, pieces) for _ in range(count)]


def _text(generator: random.Random, pieces: Sequence[str]) -> str:
    ranges = generator.sample(_RANGES, generator.randint(1, 3))
    text = "".join(_part(generator, ranges, pieces) for _ in range(generator.randint(1, 24)))
    forms: tuple[Literal["NFC", "NFD", "NFKD"] | None, ...] = (None, None, "NFC", "NFD", "NFKD")
    form = generator.choice(forms)
    return text if form is None else unicodedata.normalize(form, text)


def _part(generator: random.Random, ranges: list[tuple[int, int]], pieces: Sequence[str]) -> str:
    kind = generator.random()
    if kind < 0.2:
        return generator.choice(_SPACES)
    if kind < 0.5 and pieces:
        return generator.choice(pieces).replace("\u2581", " ")
    characters = [chr(generator.randint(*generator.choice(ranges))) for _ in range(3)]
    if kind < 0.6:
        return characters[0] * generator.randint(2, 9)
    return "".join(characters[: generator.randint(1, 3)])
