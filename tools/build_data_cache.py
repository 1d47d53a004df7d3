#!/usr/bin/env python
"""Build Megatron's index cache before a job, so that all its nodes only read it.

Takes the training's own flags, all of them: the cache is found again by many. --data-cache-path
says where it goes. Needs one process and no GPU, whatever the layout.

Example:
    python tools/build_data_cache.py --data-args-path blend.txt --split 99,1,0 \
        --data-cache-path /shared/cache ...   # the dots: as for pretrain_helm.py
"""

import logging
import sys
import time
from pathlib import Path

from helm_megatron import megatron_patches

megatron_patches.apply()  # before anything imports megatron

from helm_megatron.checks import megatrons_refusals  # noqa: E402
from helm_megatron.data_cache import build_cache, prepare  # noqa: E402
from helm_megatron.errors import HelmError  # noqa: E402


def main() -> None:
    """Run the tool; errors end it with one line and exit code 1."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("megatron.core.datasets").setLevel(logging.INFO)  # its progress
    start = time.monotonic()
    try:
        with megatrons_refusals():
            folder = Path(prepare().data_cache_path)
            made, there = build_cache(folder)
    except HelmError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was written")
    size, seconds = sum(path.stat().st_size for path in made), time.monotonic() - start
    print(f"{folder}: {len(made)} new files, {size / 1e6:,.1f} MB, in {seconds:.1f} s", end=" ")
    print(f"({there} files were there)")


if __name__ == "__main__":
    main()
