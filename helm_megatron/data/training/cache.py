"""Megatron's index cache (which tokens make which sample), built before the job that reads it."""

import os
from pathlib import Path

from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.training import get_args
from megatron.training.training import get_train_valid_test_num_samples

from helm_megatron.data.errors import DataError
from helm_megatron.data.output import full_disk, own_folder
from helm_megatron.data.training import validation
from helm_megatron.data.training.batch import at_least_one, dataset_config
from helm_megatron.data.training.dataset import Dataset


def build_cache(folder: Path) -> tuple[list[Path], int]:
    """Build the cache in a folder; files appear in it only when they are whole.

    What is there already is used. Megatron's global arguments say what the data is.

    Returns:
        The new files, and how many were there.

    Raises:
        DataError: the folder cannot be written, or the data does not make a sample.
    """
    with full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        there = [path for path in folder.iterdir() if path.is_file()]
        with own_folder(folder, ".staged-") as own:
            staging = own / "cache"
            staging.mkdir()
            for path in there:
                Path(staging, path.name).symlink_to(path.resolve())
            config = dataset_config()
            config.path_to_cache = str(staging)
            samples = at_least_one(get_train_valid_test_num_samples())
            samples = validation.sizes(get_args(), samples)
            try:
                BlendedMegatronDatasetBuilder(Dataset, samples, lambda: True, config).build()
            except (AssertionError, ValueError, IndexError, RuntimeError) as error:
                raise DataError(f"the data cannot be split and sampled so: {error}") from error
            made = sorted(p for p in Path(staging).iterdir() if not p.is_symlink())
            for path in made:
                with path.open("rb") as file:
                    os.fsync(file)
            return [path.rename(folder / path.name) for path in made], len(there)
