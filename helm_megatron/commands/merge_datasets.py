"""Join .bin/.idx datasets of one tokenizer into one.

Example:
    python tools/merge_datasets.py --input data/part1_text_document data/part2_text_document \
        --output-prefix data/all_text_document
"""

import argparse
import sys

from helm_megatron.commands.options import prefix
from helm_megatron.data.merge import find_prefixes, merge
from helm_megatron.errors import HelmError


def main() -> None:
    """Run the tool; errors in the input end it with one line and exit code 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input", nargs="+", required=True, help="paths without .bin/.idx, or folders of datasets"
    )
    parser.add_argument(
        "--output-prefix", type=prefix, required=True, help="path of the output without .bin/.idx"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing output")
    args = parser.parse_args()
    try:
        prefixes = find_prefixes(args.input)
        documents = merge(prefixes, args.output_prefix, overwrite=args.overwrite)
    except HelmError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was written")
    print(f"{args.output_prefix}: {documents:,} documents of {len(prefixes)} datasets")
