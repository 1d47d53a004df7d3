"""A .bin file that ends before it should is an error in one line.

Upstream: Megatron 0.19 maps the file into memory, or, with `--no-mmap-bin-files`, reads from it
without looking how much came. Where another process has cut it off since, the first ends the rank
by a silent SIGBUS, the second trains on whatever was in memory.
Here: both read from the file, and look.
Goes: when upstream's readers notice a file that was cut off.
"""

import os
from typing import Any

import numpy as np

from helm_megatron.data.errors import DataError

UPSTREAM = {
    "megatron.core.datasets.indexed_dataset._MMapBinReader": "fa64d6fb8fb2",
    "megatron.core.datasets.indexed_dataset._FileBinReader.read": "fc3247e0a971",
}


def apply() -> None:
    """Replace the methods that read."""
    from megatron.core.datasets import indexed_dataset
    from megatron.core.msc_utils import MultiStorageClientFeature

    def mapped(self: Any, dtype: Any, count: int, offset: int) -> np.ndarray:
        if MultiStorageClientFeature.is_enabled():  # no file of the system
            return of_maps(self, dtype, count, offset)
        return _read(self._bin_file_reader, dtype, count, offset)

    def opened(self: Any, dtype: Any, count: int, offset: int) -> np.ndarray:
        if MultiStorageClientFeature.is_enabled():
            return of_files(self, dtype, count, offset)
        with open(self._bin_path, "rb", buffering=0) as file:
            return _read(file, dtype, count, offset)

    of_maps = indexed_dataset._MMapBinReader.read
    of_files = indexed_dataset._FileBinReader.read
    indexed_dataset._MMapBinReader.read = mapped
    indexed_dataset._FileBinReader.read = opened


def _read(file: Any, dtype: Any, count: int, offset: int) -> np.ndarray:
    tokens = np.empty(count, dtype)
    left, place = memoryview(tokens).cast("B"), int(offset)
    while left:
        got = os.preadv(file.fileno(), [left], place)
        if not got:
            size = os.fstat(file.fileno()).st_size
            raise DataError(
                f"{file.name}: has {size:,} bytes, and tokens from byte {int(offset):,} on are"
                " wanted: it was cut off while it was read; make it anew, then go on from the last"
                " checkpoint"
            )
        left, place = left[got:], place + got
    return tokens
