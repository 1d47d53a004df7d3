"""How a head carries its time into a dot-product kernel: in lanes beside its space coordinates."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Lanes(NamedTuple):
    """The sign of the time, and which of its parts each lane has, 0 the high and 1 the low one.

    Where the dtype is wide enough one lane has it all.
    """

    sign: int
    parts: tuple[int, ...]


QUERY, KEY, VALUE = Lanes(-1, (0, 0, 1)), Lanes(1, (0, 1, 0)), Lanes(1, (0, 1))


def augmented_width(dtype: torch.dtype, d: int, lanes: int) -> int:
    """Width of a head of d space coordinates with its time lanes.

    In low precision up to a multiple of 8, for fused kernels; else one lane carries the time.
    """
    return d + 1 if is_wide(dtype) else -(-(d + lanes) // 8) * 8


def is_wide(dtype: torch.dtype) -> bool:
    """Whether one lane of dtype carries a time."""
    return torch.finfo(dtype).bits >= 32
