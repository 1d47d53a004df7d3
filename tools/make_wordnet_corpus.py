#!/usr/bin/env python
"""Turn WordNet's noun and verb files into JSONL documents, one a synset.

A document names the synset's words, the word above it in the hierarchy, its definition and its
examples: 'dog, domestic dog, Canis familiaris: a kind of canine. A member of the genus Canis ...
"the dog barked all night"'. The order is pseudorandom and fixed, so the output depends on the
input alone.

Example:
    python tools/make_wordnet_corpus.py --wordnet-dir /usr/share/wordnet \
        --output examples/data/wordnet_glosses.jsonl.gz
"""

import argparse
import gzip
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from helm_megatron.data.errors import DataError
from helm_megatron.data.output import staged

# File, and how each kind of pointer to the synset above reads (wndb(5): @ hypernym, @i instance).
PARTS = {
    "data.noun": {"@": "a kind of", "@i": "an instance of"},
    "data.verb": {"@": "a way to"},
}


@dataclass(frozen=True)
class Synset:
    """One line of a WordNet data file: words, pointers as (symbol, offset), and the gloss."""

    words: list[str]
    pointers: list[tuple[str, str]]
    gloss: str


def parse_synset(line: str) -> tuple[str, Synset]:
    """Parse a data line into its byte offset (WordNet's key) and content; see wndb(5)."""
    data, gloss = line.split(" | ", 1)
    fields = data.split()
    word_count = int(fields[3], 16)
    words = [word.replace("_", " ") for word in fields[4 : 4 + 2 * word_count : 2]]
    start = 4 + 2 * word_count
    pointer_count = int(fields[start])
    pointers = [
        (fields[i], fields[i + 1]) for i in range(start + 1, start + 1 + 4 * pointer_count, 4)
    ]
    return fields[0], Synset(words, pointers, gloss.strip())


def read_synsets(path: Path) -> dict[str, Synset]:
    """Read a WordNet data file; its license header lines start with two spaces."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; see --wordnet-dir") from error
    try:
        return dict(parse_synset(line) for line in lines if not line.startswith("  "))
    except (ValueError, IndexError) as error:
        raise DataError(f"{path}: not a WordNet data file") from error


def documents(synsets: dict[str, Synset], relations: dict[str, str]) -> Iterator[str]:
    """Yield one text a synset; `relations` maps pointer symbols to their wording."""
    for synset in synsets.values():
        above = [
            f"{relations[symbol]} {synsets[offset].words[0]}"
            for symbol, offset in synset.pointers
            if symbol in relations
        ]
        head = ", ".join(synset.words)
        if above:
            head += ": " + " and ".join(above)
        definition, *examples = re.split(r'[;:,] *(?=")', synset.gloss, maxsplit=1)
        definition = definition[:1].upper() + definition[1:].rstrip(" ;:,.")
        yield " ".join([f"{head}.", f"{definition}.", *examples]).rstrip(" ;")


def main() -> None:
    """Write the corpus; errors in the input end the tool with one line and exit code 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wordnet-dir", type=Path, required=True, help="folder of data.noun")
    parser.add_argument("--output", type=Path, required=True, help="a .jsonl.gz file")
    parser.add_argument("--overwrite", action="store_true", help="replace existing output")
    args = parser.parse_args()
    try:
        texts = [
            text
            for name, relations in PARTS.items()
            for text in documents(read_synsets(args.wordnet_dir / name), relations)
        ]
        # Sorting by hash shuffles the same way on every machine and Python version.
        texts.sort(key=lambda text: hashlib.sha256(text.encode()).digest())
        lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        with staged([args.output], args.overwrite) as [path]:
            path.write_bytes(gzip.compress(lines.encode(), mtime=0))
    except DataError as error:
        sys.exit(f"error: {error}")
    print(f"{args.output}: {len(texts):,} documents, {len(lines.encode()):,} bytes of JSONL")


if __name__ == "__main__":
    main()
