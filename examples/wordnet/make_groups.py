#!/usr/bin/env python
"""Write nouns in groups from generic to specific, by their depth in WordNet's hierarchy.

A noun counts by its most frequent sense, if at least half of the tagged uses of its spelling have
that; its depth is the least number of steps up to "entity". So that no group has the frequent words
alone, all are of words that the tagged texts use equally often: FEWEST to MOST times. Of those the
choice is pseudorandom and fixed.

Example:
    python examples/wordnet/make_groups.py --wordnet-dir /usr/share/wordnet \
        --output helm_megatron/analysis/word_groups/wordnet.tsv
"""

import argparse
import hashlib
import re
import sys
from collections import Counter
from pathlib import Path

from make_tree import tree
from wordnet import Synset, read_synsets

from helm_megatron.data.errors import DataError
from helm_megatron.data.output import staged
from helm_megatron.errors import HelmError

FEWEST, MOST = 3, 20
# The greatest depth of each group.
DEPTHS = {"depth up to 4": 4, "depth 5 and 6": 6, "depth 7 and 8": 8, "depth 9 and 10": 10}
DEEPER = "depth 11 and more"
PLAIN = re.compile(r"[a-z]{3,}")
NOTE = """\
# Nouns from generic to specific, a group and a word a line: for `helm-megatron analyze`. Groups are
# of depths in WordNet 3.0 below "entity". Made by examples/wordnet/make_groups.py; licensed as
# WordNet is, see WORDNET_LICENSE in examples/data and helm_megatron/evaluation/tasks.
"""


def read_lines(path: Path) -> list[list[str]]:
    """The lines of an index file as fields, without its license.

    Raises:
        DataError: it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; see --wordnet-dir") from error
    return [line.split() for line in lines if line and not line.startswith("  ")]


def first_senses(folder: Path) -> dict[str, str]:
    """The synset of every noun's most frequent sense: the first of index.noun (wndb(5))."""
    # lemma, part of speech, synsets, pointers p, p symbols, senses, tagged senses, synsets
    return {fields[0]: fields[6 + int(fields[3])] for fields in read_lines(folder / "index.noun")}


def main_uses(folder: Path) -> dict[str, int]:
    """How often texts have a noun in its first sense, of nouns mostly used so (cntlist(5))."""
    uses: Counter[str] = Counter()
    first: dict[str, int] = {}
    for key, sense, count in read_lines(folder / "cntlist.rev"):
        word, rest = key.split("%")
        uses[word] += int(count)
        if rest.startswith("1:") and sense == "1":  # part 1: nouns
            first[word] = int(count)
    return {word: count for word, count in first.items() if 2 * count >= uses[word]}


def depths_of(synsets: dict[str, Synset]) -> dict[str, int]:
    """The least number of steps from every synset below "entity" up to it."""
    depths: dict[str, int] = {}
    for offset, parent in tree(synsets, "entity").items():
        depths[offset] = 0 if parent is None else depths[parent] + 1
    return depths


def group_of(depth: int) -> str:
    """The name of the group of a depth."""
    return next((name for name, most in DEPTHS.items() if depth <= most), DEEPER)


def make_groups(folder: Path, words: int) -> dict[str, list[str]]:
    """Up to so many words of each group.

    Raises:
        DataError: a file cannot be read, or is not WordNet's.
    """
    synsets = read_synsets(folder / "data.noun")
    depths, senses = depths_of(synsets), first_senses(folder)
    groups: dict[str, list[str]] = {name: [] for name in [*DEPTHS, DEEPER]}
    for word, count in main_uses(folder).items():
        offset = senses.get(word)
        if offset not in depths or not FEWEST <= count <= MOST:
            continue
        # The synset has the word as it is written: names have capitals.
        if PLAIN.fullmatch(word) and word in synsets[offset].words:
            groups[group_of(depths[offset])].append(word)
    return {name: sorted(sorted(found, key=order)[:words]) for name, found in groups.items()}


def order(word: str) -> bytes:
    """A hash to sort by: the same pseudorandom order on every machine."""
    return hashlib.blake2b(word.encode()).digest()


def main() -> None:
    """Write the groups; errors in the input end the tool with one line and exit code 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wordnet-dir", type=Path, required=True, help="folder of data.noun")
    parser.add_argument("--output", type=Path, required=True, help="a .tsv file")
    parser.add_argument("--words", type=int, default=40, help="of a group (default: 40)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing output")
    args = parser.parse_args()
    try:
        groups = make_groups(args.wordnet_dir, args.words)
        lines = [f"{name}\t{word}\n" for name, words in groups.items() for word in words]
        with staged([args.output], args.overwrite) as [path]:
            path.write_text(NOTE + "".join(lines), encoding="utf-8")
    except HelmError as error:
        sys.exit(f"error: {error}")
    print(f"{args.output}: {len(lines):,} words in {len(groups)} groups")


if __name__ == "__main__":
    main()
