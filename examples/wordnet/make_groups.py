#!/usr/bin/env python
"""Write groups of nouns by their depth in WordNet, generic to specific, a group and a word a line.

A noun counts with its first sense; its depth is the number of steps up to "entity" by the shortest
way. Of each group's nouns those are taken that WordNet counts most often in its tagged texts.

Example:
    python examples/wordnet/make_groups.py --wordnet-dir /usr/share/wordnet \
        --output helm_megatron/analysis/word_groups/wordnet.tsv
"""

import argparse
import re
import sys
from pathlib import Path

from make_tree import tree
from wordnet import read_synsets

from helm_megatron.data.errors import DataError
from helm_megatron.data.output import staged
from helm_megatron.errors import HelmError

NOTE = """\
# Nouns by their depth in WordNet 3.0 below "entity", a group and a word a line.
# Made by examples/wordnet/make_groups.py; licensed as WordNet: examples/data/WORDNET_LICENSE.
"""
FIRST, LAST, STEP = 3, 12, 2  # depths: 3-4, 5-6, ... 11-12


def first_senses(path: Path) -> dict[str, str]:
    """The synset of each noun's first sense, from WordNet's index.noun.

    Raises:
        DataError: the file cannot be read, or is not WordNet's.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        fields = [line.split() for line in lines if not line.startswith("  ")]
        return {words[0]: words[4 + int(words[3]) + 2] for words in fields}
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"{path}: not WordNet's index of nouns: {error}") from error


def counts(path: Path) -> dict[str, int]:
    """How often each noun's first sense is tagged, from WordNet's cntlist.rev.

    Raises:
        DataError: the file cannot be read, or is not WordNet's.
    """
    try:
        fields = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        # A sense's key is word%kind:...; nouns are of kind 1.
        keys = [(key.split("%"), sense, count) for key, sense, count in fields]
        nouns = [(word, int(n)) for (word, kind), s, n in keys if kind[0] == "1" and s == "1"]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not WordNet's list of counts: {error}") from error
    return dict(nouns)


def groups(folder: Path, words: int) -> dict[str, list[str]]:
    """So many nouns of each group of depths."""
    synsets = read_synsets(folder / "data.noun")
    depths: dict[str, int] = {}
    for offset, parent in tree(synsets, "entity").items():
        depths[offset] = 0 if parent is None else depths[parent] + 1
    found = counts(folder / "cntlist.rev")
    nouns = [
        (-found[noun], noun, depths[offset])
        for noun, offset in first_senses(folder / "index.noun").items()
        if re.fullmatch("[a-z]{3,}", noun) and noun in found and offset in depths
    ]
    result = {}
    for low in range(FIRST, LAST, STEP):
        own = sorted((often, noun) for often, noun, depth in nouns if low <= depth < low + STEP)
        result[f"depth {low}-{low + STEP - 1}"] = [noun for _, noun in own[:words]]
    return result


def main() -> None:
    """Write the groups; errors in the input end the tool with one line and exit code 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wordnet-dir", type=Path, required=True, help="folder of data.noun")
    parser.add_argument("--words", type=int, default=24, help="of each group (default: 24)")
    parser.add_argument("--output", type=Path, required=True, help="a .tsv file")
    parser.add_argument("--overwrite", action="store_true", help="replace existing output")
    args = parser.parse_args()
    try:
        found = groups(args.wordnet_dir, args.words)
        lines = [f"{group}\t{word}\n" for group, words in found.items() for word in words]
        with staged([args.output], args.overwrite) as [path]:
            path.write_text(NOTE + "".join(lines), encoding="utf-8")
    except HelmError as error:
        sys.exit(f"error: {error}")
    print(f"{args.output}: {len(lines):,} words in {len(found)} groups")


if __name__ == "__main__":
    main()
