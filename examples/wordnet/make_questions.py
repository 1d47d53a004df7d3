#!/usr/bin/env python
"""Make multiple-choice questions on hypernymy ("lion: a kind of ...") from WordNet's noun files.

The right choice is the word above the term in WordNet. The three wrong ones are right choices of
other questions, so no choice gives itself away by how common it is; none of them is above the term
at any distance. Terms have one meaning in WordNet, and no choice repeats a word of its term.

Every question is about a synset whose document is among the last 5% of the corpus that
make_corpus.py makes: with `--split 95,5,0` the answers are not in the training text. The questions
depend on the input alone.

Example:
    python examples/wordnet/make_questions.py --wordnet-dir /usr/share/wordnet \
        --output helm_megatron/evaluation/tasks/wordnet_hypernymy.jsonl.gz
"""

import argparse
import gzip
import hashlib
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from wordnet import PARTS, Synset, corpus, read_synsets

from helm_megatron.data.errors import DataError
from helm_megatron.data.output import staged
from helm_megatron.errors import HelmError

HELD_OUT = 0.05
CHOICES = 4
# No names, numbers or abbreviations: lower-case words.
PLAIN = re.compile(r"[a-z]{3,}([ -][a-z]+)*")

Synsets = dict[str, Synset]


@dataclass(frozen=True)
class Candidate:
    """A term, the word above it, and what may not be a wrong choice: every word above it."""

    offset: str
    term: str
    answer: str
    above: frozenset[str]


def key(*parts: str) -> bytes:
    """Return a hash to sort by: the same pseudorandom order on every machine."""
    return hashlib.sha256("\n".join(parts).encode()).digest()


def words_above(offset: str, synsets: Synsets) -> frozenset[str]:
    """Return the words of a synset and of all synsets above it."""
    seen: set[str] = set()
    waiting = [offset]
    while waiting:
        offset = waiting.pop()
        if offset not in seen:
            seen.add(offset)
            waiting += [to for symbol, to in synsets[offset].pointers if symbol in ("@", "@i")]
    return frozenset(word.lower() for offset in seen for word in synsets[offset].words)


def overlap(term: str, choice: str) -> bool:
    """Whether the term's spelling hints at the choice: 'sea dog' and 'dog', 'sailboat', 'boat'."""
    return any(word in term for word in re.split(r"[ -]", choice))


def candidates(offsets: list[str], synsets: Synsets) -> list[Candidate]:
    """Return the synsets, of those at `offsets`, that make a question."""
    meanings = Counter(
        word for synset in synsets.values() for word in {word.lower() for word in synset.words}
    )
    found = []
    for offset in offsets:
        synset = synsets[offset]
        above = [to for symbol, to in synset.pointers if symbol == "@"]
        if len(above) != 1:
            continue
        term, answer = synset.words[0], synsets[above[0]].words[0]
        plain = PLAIN.fullmatch(term) and PLAIN.fullmatch(answer)
        if plain and meanings[term] == 1 and not overlap(term, answer):
            found.append(Candidate(offset, term, answer, words_above(offset, synsets)))
    return found


def question(asked: Candidate, pool: list[Candidate]) -> dict[str, object]:
    """Return a question as lm-eval reads it: term, choices, index of the right one, synset."""
    choices = [asked.answer]
    for other in sorted(pool, key=lambda other: key(asked.offset, other.offset)):
        wrong = other.answer not in asked.above and not overlap(asked.term, other.answer)
        if wrong and other.answer not in choices:
            choices.append(other.answer)
        if len(choices) == CHOICES:
            break
    else:
        raise DataError(f"too few nouns to find {CHOICES - 1} wrong choices for {asked.term!r}")
    choices.sort(key=lambda choice: key(asked.offset, choice))
    return {
        "term": asked.term,
        "choices": choices,
        "answer": choices.index(asked.answer),
        "synset": asked.offset,
    }


def make_questions(parts: dict[str, Synsets], limit: int) -> list[dict[str, object]]:
    """Return up to `limit` questions about nouns of the held-out part of the corpus."""
    documents = corpus(parts)
    held_out = documents[len(documents) - int(HELD_OUT * len(documents)) :]
    offsets = [entry.offset for entry in held_out if entry.file == "data.noun"]
    pool = candidates(offsets, parts["data.noun"])
    return [question(asked, pool) for asked in pool[:limit]]


def main() -> None:
    """Write the questions; errors in the input end the tool with one line and exit code 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wordnet-dir", type=Path, required=True, help="folder of data.noun")
    parser.add_argument("--output", type=Path, required=True, help="a .jsonl.gz file")
    parser.add_argument("--questions", type=int, default=1000, help="at most (default: 1000)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing output")
    args = parser.parse_args()
    try:
        parts = {name: read_synsets(args.wordnet_dir / name) for name in PARTS}
        questions = make_questions(parts, args.questions)
        lines = "".join(json.dumps(question) + "\n" for question in questions)
        with staged([args.output], args.overwrite) as [path]:
            path.write_bytes(gzip.compress(lines.encode(), mtime=0))
    except HelmError as error:
        sys.exit(f"error: {error}")
    print(f"{args.output}: {len(questions):,} questions")


if __name__ == "__main__":
    main()
