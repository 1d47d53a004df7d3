#!/usr/bin/env python
"""Turn WordNet's noun and verb files into JSONL documents, one a synset.

A document names the synset's words, the word above it in the hierarchy, its definition and its
examples: 'dog, domestic dog, Canis familiaris: a kind of canine. A member of the genus Canis ...
"the dog barked all night"'. With --first-sentence it ends after "canine.". The order is
pseudorandom, fixed, and the same for both, so the output depends on the input alone.

Example:
    python examples/wordnet/make_corpus.py --wordnet-dir /usr/share/wordnet \
        --output examples/data/wordnet_glosses.jsonl.gz
"""

import argparse
import gzip
import json
import sys
from pathlib import Path

from wordnet import PARTS, corpus, read_synsets

from helm_megatron.data.output import staged
from helm_megatron.errors import HelmError


def main() -> None:
    """Write the corpus; errors in the input end the tool with one line and exit code 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wordnet-dir", type=Path, required=True, help="folder of data.noun")
    parser.add_argument("--output", type=Path, required=True, help="a .jsonl.gz file")
    parser.add_argument(
        "--first-sentence", action="store_true", help="words and hypernyms, without the glosses"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing output")
    args = parser.parse_args()
    try:
        documents = corpus({name: read_synsets(args.wordnet_dir / name) for name in PARTS})
        texts = [entry.head if args.first_sentence else entry.text for entry in documents]
        lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        with staged([args.output], args.overwrite) as [path]:
            path.write_bytes(gzip.compress(lines.encode(), mtime=0))
    except HelmError as error:
        sys.exit(f"error: {error}")
    print(f"{args.output}: {len(texts):,} documents, {len(lines.encode()):,} bytes of JSONL")


if __name__ == "__main__":
    main()
