"""A dataset in the making: what a killed run leaves behind, and a later one takes up.

The folder `<output prefix>.partial` holds, for each key and partition, the tokens so far and the
length of each document, and a journal. Its first line says what is being made; each further line
is a checkpoint: how long the files were, all on disk, and where reading stood.
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from helm_megatron.data.errors import DataError
from helm_megatron.data.indexed import CHUNK, write_index
from helm_megatron.data.readers import Position

# All that is ever in the folder.
_OWN = re.compile(r"journal|sources|\d+\.\d+\.(bin|lengths)|\d+\.(idx|json)")


@dataclass
class Counts:
    """What was read and made so far; bad records were left out, empty texts were kept."""

    documents: int = 0
    tokens: int = 0
    bytes_read: int = 0
    bad: int = 0
    empty: int = 0


@dataclass
class State:
    """A checkpoint: where reading goes on, the bytes on disk read so far, the sizes of all files
    by name, and the counts; done when nothing is left to read.
    """

    position: Position = field(default_factory=Position)
    consumed: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    done: bool = False


class PartialDataset:
    """The files of an unfinished dataset, open for writing; one process at a time.

    Args:
        folder: where they are.
        making: what is being made, as JSON; a run resumes only what it would make itself.
        keys: how many datasets.
        partitions: documents are dealt to so many parts in turn, which are joined in the end.
    """

    def __init__(self, folder: Path, making: dict[str, Any], keys: int, partitions: int) -> None:
        self.folder, self._keys, self._partitions = folder, keys, partitions
        self._making = making
        self.state = State()
        self._files: dict[str, BinaryIO] = {}
        self._journal: BinaryIO

    @property
    def journal_path(self) -> Path:
        """The journal's place; where there is none, nothing can be resumed."""
        return self.folder / "journal"

    def open(self, resume: bool, overwrite: bool) -> None:
        """Take up the last checkpoint where `resume`, else begin anew.

        Raises:
            DataError: another run is writing; what is there is not ours; or what `resume` finds is
                of other input or options, and may not be overwritten.
        """
        self._check_own()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._journal = self.journal_path.open("a+b")
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._journal.close()
            raise DataError(f"{self.folder}: another run is writing here") from error
        except OSError:
            pass  # a file system without locks
        if resume:
            self._take_up(overwrite)
        else:
            self._begin()
        for name in self._names() if not self.state.done else ():
            self._files[name] = (self.folder / name).open("ab", buffering=0)
            self._files[name].truncate(self.state.sizes.get(name, 0))

    def _check_own(self) -> None:
        """Refuse a folder that a run of ours did not make; its files would be removed."""
        if self.folder.is_symlink():
            raise DataError(f"{self.folder}: is a link; remove it, or name another output")
        if self.folder.exists():
            for path in self.folder.iterdir() if self.folder.is_dir() else (self.folder,):
                if path.is_dir() or path.is_symlink() or not _OWN.fullmatch(path.name):
                    raise DataError(
                        f"{path}: no file of an unfinished run; move it, or name another output"
                    )

    def _begin(self) -> None:
        for leftover in self.folder.iterdir():
            if leftover != self.journal_path:
                leftover.unlink()
        self._journal.truncate(0)
        self._record(self._making)

    def _take_up(self, overwrite: bool) -> None:
        self._journal.seek(0)
        lines = self._journal.read().split(b"\n")
        if len(lines) < 2:  # it was killed before it could say what it makes
            self._begin()
            return
        begun = json.loads(lines[0])
        for name, value in self._making.items():
            if begun.get(name) != value and overwrite:
                return self._begin()
            if begun.get(name) != value:
                raise DataError(
                    f"{self.folder}: was begun with another {name}; pass that again, or"
                    " --overwrite to begin anew"
                )
        if len(lines) > 2:
            last = json.loads(lines[-2])  # what follows the last newline was not written whole
            position, counts = Position(**last.pop("position")), Counts(**last.pop("counts"))
            self.state = State(position, counts=counts, **last)
            self._journal.truncate(sum(len(line) + 1 for line in lines[:-1]))

    def _names(self) -> list[str]:
        return [
            f"{key}.{partition}.{kind}"
            for key in range(self._keys)
            for partition in range(self._partitions)
            for kind in ("bin", "lengths")
        ]

    def add(self, key: int, tokens: np.ndarray, lengths: np.ndarray, first: int) -> None:
        """Append documents of a key: tokens end to end; `first` numbers the first of them."""
        if self._partitions == 1:
            self._write(f"{key}.0", tokens, lengths)
            return
        part = (first + np.arange(lengths.size)) % self._partitions
        part_of_token = np.repeat(part, lengths)
        for number in range(self._partitions):
            name = f"{key}.{number}"
            self._write(name, tokens[part_of_token == number], lengths[part == number])

    def _write(self, name: str, tokens: np.ndarray, lengths: np.ndarray) -> None:
        for file, array in ((f"{name}.bin", tokens), (f"{name}.lengths", lengths.astype("<i4"))):
            left = memoryview(array.tobytes())
            while left:
                left = left[self._files[file].write(left) :]

    def checkpoint(self) -> None:
        """Make all that was added survive this process, with `state.position` and the counts."""
        for name, file in self._files.items():
            os.fsync(file)
            self.state.sizes[name] = file.tell()
        self._record(asdict(self.state))

    def _record(self, line: dict[str, Any]) -> None:
        self._journal.write(json.dumps(line).encode() + b"\n")
        self._journal.flush()
        os.fsync(self._journal)

    def assemble(self, key: int, dtype: np.dtype) -> None:
        """Join a key's partitions in `<key>.0.bin` and write its index, `<key>.idx`.

        Nothing that a checkpoint counts is changed, so this can be done again.
        """
        data = self.folder / f"{key}.0.bin"
        with data.open("ab") as joined:
            joined.truncate(self.state.sizes[data.name])
            for partition in range(1, self._partitions):
                with (self.folder / f"{key}.{partition}.bin").open("rb") as part:
                    shutil.copyfileobj(part, joined, 1 << 22)
            os.fsync(joined)
        index = self.folder / f"{key}.idx"
        with index.open("wb") as stream:
            write_index(stream, dtype, lambda: self._sequences(key), lambda: self._bounds(key))
            stream.flush()
            os.fsync(stream)

    def _lengths(self, key: int) -> Iterator[np.ndarray]:
        for partition in range(self._partitions):
            with (self.folder / f"{key}.{partition}.lengths").open("rb") as file:
                while data := file.read(4 * CHUNK):
                    yield np.frombuffer(data, "<i4")

    def _sequences(self, key: int) -> Iterator[np.ndarray]:
        """Lengths of the sequences: a document is one, an empty document none."""
        for lengths in self._lengths(key):
            yield lengths[lengths > 0]

    def _bounds(self, key: int) -> Iterator[np.ndarray]:
        yield np.zeros(1, np.int64)
        end = 0
        for lengths in self._lengths(key):
            bounds = end + np.cumsum(lengths > 0, dtype=np.int64)
            yield bounds
            end = int(bounds[-1])

    def close(self) -> None:
        """Close the files and let other runs in."""
        for file in [*self._files.values(), self._journal]:
            file.close()

    def discard(self) -> None:
        """Remove everything."""
        self.close()
        shutil.rmtree(self.folder)


def publish(moves: Sequence[tuple[Path, Path]]) -> None:
    """Rename finished files to their final names, in order; those that were already are left.

    Old targets go first, in the opposite order: put last the file that readers look for first.
    """
    for path, target in reversed(moves):
        if path.exists():
            target.unlink(missing_ok=True)
    for path, target in moves:
        if path.exists():
            path.rename(target)
