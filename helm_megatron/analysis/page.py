"""All numbers and pictures of an analysis as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import html
from pathlib import Path

STYLE = """
body { font-family: sans-serif; max-width: 60em; margin: 2em auto; }
td { padding: 0.2em 1em 0.2em 0; }
img { max-width: 100%; }
"""


def page(title: str, numbers: dict[str, str], pictures: dict[str, Path]) -> str:
    """The page: a table of numbers, then the pictures under their captions."""
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>\n"
        for name, value in numbers.items()
    )
    figures = "".join(
        f'<h2>{caption}</h2>\n<img alt="{caption}" src="{_inline(path)}">\n'
        for caption, path in ((html.escape(name), path) for name, path in pictures.items())
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{html.escape(title)}'
        f"</title>\n<style>{STYLE}</style>\n<h1>{html.escape(title)}</h1>\n<table>\n{rows}</table>\n"
        f"{figures}</html>\n"
    )


def _inline(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
