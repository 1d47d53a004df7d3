"""Output files that appear whole or not at all."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from helm_megatron.data.errors import DataError


@contextmanager
def staged(targets: Sequence[Path], overwrite: bool) -> Iterator[list[Path]]:
    """Yield one path to write for each target; they become the targets when the block succeeds.

    The staged files lie in a hidden folder beside the targets (which share one folder, made if
    missing) and are removed if the block raises. Files are renamed in the order of `targets`, after
    old ones are removed in the opposite order: put last the file that readers look for first.

    Raises:
        DataError: a target exists and `overwrite` is false, or its folder cannot be written.
    """
    for target in targets:
        if target.exists() and not overwrite:
            raise DataError(f"{target} exists; pass --overwrite to replace it")
    folder = targets[0].parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging = tempfile.TemporaryDirectory(dir=folder, prefix=".staged-")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror}") from error
    with staging:
        paths = [Path(staging.name, target.name) for target in targets]
        yield paths
        for target in reversed(targets):
            target.unlink(missing_ok=True)
        for path, target in zip(paths, targets, strict=True):
            path.rename(target)
