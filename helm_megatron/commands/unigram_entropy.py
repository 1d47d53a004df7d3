"""Print the unigram entropy of a dataset's validation tokens, in nats a token.

A model whose validation loss is below it has learned to use context. It is the entropy of the
validation tokens' own frequencies, so no context-free model can do better on them.
"""

import argparse
import sys

from helm_megatron.data.entropy import SPLITS, unigram_entropy
from helm_megatron.errors import HelmError


def main() -> None:
    """Run the tool; errors in the input end it with one line and exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-path", required=True, help="path without .bin/.idx")
    parser.add_argument("--split", required=True, help="as for training, for example 95,5,0")
    parser.add_argument("--part", choices=SPLITS, default="valid")
    args = parser.parse_args()
    try:
        print(f"{unigram_entropy(args.data_path, args.split, args.part):.4f}")
    except HelmError as error:
        sys.exit(f"error: {error}")
