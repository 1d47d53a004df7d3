"""Types of flags that several commands have, for argparse."""

import argparse
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
