"""WordNet's database files, and the documents made of them."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from helm_megatron.data.errors import DataError

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
    """Read a WordNet data file as {offset: synset}; its license lines start with two spaces.

    Raises:
        DataError: the file cannot be read, or is not WordNet's.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; see --wordnet-dir") from error
    try:
        return dict(parse_synset(line) for line in lines if not line.startswith("  "))
    except (ValueError, IndexError) as error:
        raise DataError(f"{path}: not a WordNet data file") from error


@dataclass(frozen=True)
class Document:
    """A synset as text: its words and the word above them; then its definition and examples."""

    file: str
    offset: str
    head: str
    gloss: str

    @property
    def text(self) -> str:
        """The whole entry."""
        return f"{self.head} {self.gloss}"


def head(synset: Synset, synsets: dict[str, Synset], relations: dict[str, str]) -> str:
    """Return the first sentence of a synset; `relations` maps pointer symbols to their wording."""
    above = [
        f"{relations[symbol]} {synsets[offset].words[0]}"
        for symbol, offset in synset.pointers
        if symbol in relations
    ]
    words = ", ".join(synset.words)
    return (f"{words}: {' and '.join(above)}" if above else words) + "."


def gloss(synset: Synset) -> str:
    """Return a synset's definition and examples as sentences."""
    definition, *examples = re.split(r'[;:,] *(?=")', synset.gloss, maxsplit=1)
    definition = definition[:1].upper() + definition[1:].rstrip(" ;:,.")
    return " ".join([f"{definition}.", *examples]).rstrip(" ;")


def corpus(parts: dict[str, dict[str, Synset]]) -> list[Document]:
    """Return every synset as a document, in the corpus's pseudorandom, fixed order.

    Args:
        parts: the synsets of every file of PARTS.
    """

    def documents() -> Iterator[Document]:
        for name, synsets in parts.items():
            for offset, synset in synsets.items():
                yield Document(name, offset, head(synset, synsets, PARTS[name]), gloss(synset))

    # Sorting by hash shuffles the same way on every machine and Python version.
    return sorted(documents(), key=lambda entry: hashlib.sha256(entry.text.encode()).digest())
