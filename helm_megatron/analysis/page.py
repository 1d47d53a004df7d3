"""All numbers and pictures of an analysis as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

STYLE = """
body { font-family: sans-serif; max-width: 60em; margin: 2em auto; }
td, th { padding: 0.2em 1em 0.2em 0; text-align: left; }
img { max-width: 100%; }
"""


def page(title: str, numbers: Mapping[str, Mapping[str, str]], pictures: Mapping[str, Path]) -> str:
    """The page: a table of numbers by model, then the pictures under their captions."""
    heads = ["", *numbers] if len(numbers) > 1 else []
    names = dict.fromkeys(name for of_model in numbers.values() for name in of_model)
    cells = [[name, *(each.get(name, "") for each in numbers.values())] for name in names]
    rows = "".join(_row(row, "th" if row is heads else "td") for row in [heads, *cells] if row)
    figures = "".join(
        f'<h2>{caption}</h2>\n<img alt="{caption}" src="{_inline(path)}">\n'
        for caption, path in ((html.escape(name), path) for name, path in pictures.items())
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{html.escape(title)}'
        f"</title>\n<style>{STYLE}</style>\n<h1>{html.escape(title)}</h1>\n<table>\n{rows}</table>\n"
        f"{figures}</html>\n"
    )


def _row(cells: Sequence[str], tag: str) -> str:
    inner = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
    return f"<tr>{inner}</tr>\n"


def _inline(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
