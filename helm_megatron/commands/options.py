"""Types of flags that several commands have, for argparse."""

import argparse
import math
from pathlib import Path


def positive(text: str) -> int:
    """Parse a positive integer."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def not_negative(text: str) -> int:
    """Parse an integer of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def prefix(text: str) -> Path:
    """Parse a path that suffixes are appended to."""
    if not text.strip() or not Path(text).name:
        raise argparse.ArgumentTypeError(f"'{text}' has no name to append a suffix to")
    return Path(text)


def seed(text: str) -> int:
    """Parse a seed as torch takes it."""
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{value} is not from 0 to below 2^63")
    return value


def number(text: str) -> float:
    """Parse a finite number of at least 0."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of 0 or more")
    return value


def above_zero(text: str) -> float:
    """Parse a finite number above 0."""
    value = number(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def share(text: str) -> float:
    """Parse a number above 0 and at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value
