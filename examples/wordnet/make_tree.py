#!/usr/bin/env python
"""Write the part of WordNet's noun hierarchy below a word as a tree: a word and its parent a line.

A synset is named by its first word, a later one of the same name by that and a number; of several
synsets above one the nearest to the root is its parent.

Example:
    python examples/wordnet/make_tree.py --wordnet-dir /usr/share/wordnet --root mammal \
        --output examples/data/mammals.tsv
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from wordnet import Synset, read_synsets

from helm_megatron.data.errors import DataError
from helm_megatron.data.output import staged
from helm_megatron.errors import HelmError

NOTE = """\
# {root} and what is a kind of it in WordNet 3.0, a word a line, with its parent after a tab.
# Made by examples/wordnet/make_tree.py; licensed as WordNet is, see WORDNET_LICENSE.
"""


def tree(synsets: dict[str, Synset], root: str) -> dict[str, str | None]:
    """The parent of every synset below the first one with the word `root`, by offset; None of that.

    In order of depth. Instances (WordNet's proper names) are left out.

    Raises:
        DataError: no synset has the word.
    """
    below: dict[str, list[str]] = {}
    for offset, synset in synsets.items():
        for symbol, above in synset.pointers:
            if symbol == "@":
                below.setdefault(above, []).append(offset)
    start = next((offset for offset, synset in synsets.items() if root in synset.words), None)
    if start is None:
        raise DataError(f"--root {root}: no noun of WordNet")
    parents: dict[str, str | None] = {start: None}
    todo = [start]
    for above in todo:
        for offset in below.get(above, []):
            if offset not in parents:
                parents[offset] = above
                todo.append(offset)
    return parents


def lines(synsets: dict[str, Synset], parents: dict[str, str | None]) -> list[str]:
    """The tree as lines `word` or `word<tab>parent`, every word once."""
    seen: Counter[str] = Counter()
    names: dict[str | None, str] = {}
    result = []
    for offset, parent in parents.items():
        word = synsets[offset].words[0]
        seen[word] += 1
        names[offset] = f"{word} {seen[word]}" if seen[word] > 1 else word
        result.append(names[offset] if parent is None else f"{names[offset]}\t{names[parent]}")
    return result


def main() -> None:
    """Write the tree; errors in the input end the tool with one line and exit code 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wordnet-dir", type=Path, required=True, help="folder of data.noun")
    parser.add_argument("--root", required=True, help="a noun, as 'mammal'")
    parser.add_argument("--output", type=Path, required=True, help="a .tsv file")
    parser.add_argument("--overwrite", action="store_true", help="replace existing output")
    args = parser.parse_args()
    try:
        synsets = read_synsets(args.wordnet_dir / "data.noun")
        words = lines(synsets, tree(synsets, args.root))
        with staged([args.output], args.overwrite) as [path]:
            text = NOTE.format(root=args.root.capitalize()) + "\n".join(words) + "\n"
            path.write_text(text, encoding="utf-8")
    except HelmError as error:
        sys.exit(f"error: {error}")
    print(f"{args.output}: {len(words):,} words")


if __name__ == "__main__":
    main()
