"""Megatron's GPT dataset, with an index cache that is of the data and whole."""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from helm_megatron.data.errors import DataError

# What numpy raises for a file of an array that was cut off or damaged.
_DAMAGED = (ValueError, EOFError, pickle.UnpicklingError)


@dataclass
class DatasetConfig(GPTDatasetConfig):
    """Megatron's, and a hash of what the indices are made from; each dataset sets its own."""

    content: str | None = field(init=False, default=None)


class Dataset(GPTDataset):
    """Looks its indices up by the lengths of the sequences, too, not by the data's name alone.

    Megatron would take those of other data that was there before under the same name. The lengths
    are all that the indices depend on, besides what Megatron looks at itself. A file of the cache
    that was cut off, as by a kill, is made anew.
    """

    def __init__(
        self,
        indexed_dataset: Any,
        dataset_path: str | None,
        indexed_indices: np.ndarray,
        num_samples: int | None,
        index_split: Any,
        config: DatasetConfig,
    ) -> None:
        config = copy.copy(config)
        config.content = _hash(indexed_dataset.sequence_lengths)
        super().__init__(
            indexed_dataset, dataset_path, indexed_indices, num_samples, index_split, config
        )

    @staticmethod
    def _key_config_attributes() -> list[str]:
        return [*GPTDataset._key_config_attributes(), "content"]

    def _build_document_sample_shuffle_indices(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        build = super()._build_document_sample_shuffle_indices
        try:
            return build()
        except _DAMAGED as error:
            files = self._cache_files()
            if dist.is_initialized() and dist.get_rank() > 0:
                raise DataError(
                    f"{files[0].parent}: the index cache is damaged: {error}"
                ) from error
            print(f"{files[0].parent}: the index cache is damaged ({error}): made anew")
            for path in files:
                path.unlink(missing_ok=True)
            return build()

    def _cache_files(self) -> list[Path]:
        """Those of this dataset and part, named as Megatron names them."""
        name = type(self).__name__
        folder = self.config.path_to_cache or os.path.join(
            self.dataset.path_prefix, "cache", f"{name}_indices"
        )
        stem = f"{self.unique_description_hash}-{name}-{self.index_split.name}"
        kinds = ("description.txt", *(f"{k}_index.npy" for k in ("document", "sample", "shuffle")))
        return [Path(folder, f"{stem}-{kind}") for kind in kinds]


def _hash(lengths: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(lengths), digest_size=16).hexdigest()
