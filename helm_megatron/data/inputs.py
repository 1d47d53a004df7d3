"""What --input and --dataset name: files, folders, globs and Hugging Face datasets."""

import glob
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from helm_megatron.data.errors import DataError

COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
FORMATS = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "text",
    ".text": "text",
    ".parquet": "parquet",
}
SHOWN = 5  # names of files that are left out
SAMPLE_BY = ("line", "paragraph", "document")


@dataclass(frozen=True)
class TextSource:
    """One thing to read documents from.

    format is "jsonl", "text", "parquet", "disk" (a folder of `Dataset.save_to_disk`) or "hub"
    (a name for `datasets.load_dataset`, streamed). size is in bytes, None if unknown; modified in
    ns. config, split and revision are of datasets only.
    """

    path: str
    format: str
    size: int | None = None
    modified: int | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None

    @property
    def is_file(self) -> bool:
        """Whether it is one file, which has a hash and a position."""
        return self.format in FORMATS.values()


def format_of(path: Path) -> str | None:
    """Return the format that a file's name tells, None if it does not."""
    compressed = path.suffix.lower() in COMPRESSIONS
    found = FORMATS.get((Path(path.stem) if compressed else path).suffix.lower())
    return None if found == "parquet" and compressed else found


def find_sources(inputs: Sequence[Path | str], split: str | None = None) -> list[TextSource]:
    """Return what to read for files, folders (with those below) and globs; sorted within each.

    Of a folder nothing hidden or temporary is read, nor a file whose name does not tell a format;
    what is left out is said on stderr.

    Args:
        inputs: paths; one with * ? or [ that is no path itself is a glob, ** for any depth.
        split: the split of datasets saved to disk that have several.

    Raises:
        DataError: nothing is there, a name is empty, or a file's name does not tell its format.
    """
    sources = []
    for name in map(str, inputs):
        if not name.strip():
            raise DataError("--input: an empty name")
        if Path(name).exists():
            sources += _sources_of(Path(name), split)
        elif any(character in name for character in "*?["):
            found = sorted(glob.glob(name, recursive=True))
            if not found:
                raise DataError(f"{name}: no file matches; see --input")
            for path in found:
                sources += _sources_of(Path(path), split)
        else:
            raise DataError(f"{name}: no such file or folder; see --input")
    return sources


def _sources_of(path: Path, split: str | None) -> list[TextSource]:
    if path.is_dir():
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return [TextSource(str(path), "disk", _size_below(path), split=split)]
        files, left_out = _files_below(path)
        if left_out:
            names = ", ".join(str(file.relative_to(path)) for file in left_out[:SHOWN])
            more = f" and {len(left_out) - SHOWN} more" if len(left_out) > SHOWN else ""
            print(f"note: {path}: left out {names}{more}", file=sys.stderr)
        if not files:
            known = " ".join(FORMATS)
            raise DataError(f"{path}: no file with a known suffix below it ({known})")
        return [_file(file, str(format_of(file))) for file in files]
    kind = format_of(path)
    if kind is None:
        known = f"{' '.join(FORMATS)}, or one of the first five with {' '.join(COMPRESSIONS)}"
        raise DataError(f"{path}: the suffix does not tell the format; known are {known}")
    return [_file(path, kind)]


def _files_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return what to read below a folder, and what is left out; both sorted.

    Links are followed, those to folders last: to one that was read already there is no more to say.

    Raises:
        DataError: a folder cannot be read, or a link leads nowhere.
    """
    files: list[Path] = []
    left_out: list[Path] = []
    folders, links, read = [folder], deque[Path](), set()
    while folders or links:
        here = folders.pop() if folders else links.popleft()
        if here.resolve() in read:
            left_out.append(here)
            continue
        read.add(here.resolve())
        for path in _entries(here):
            if _is_hidden(path.name):
                left_out.append(path)
            elif path.is_dir():
                (links if path.is_symlink() else folders).append(path)
            elif format_of(path) is None or _is_sidecar(path):
                left_out.append(path)
            elif path.is_file():
                files.append(path)
            else:
                raise DataError(f"{path}: is no file, or a link that leads nowhere")
    return sorted(files), sorted(left_out)


def _is_sidecar(path: Path) -> bool:
    """Whether a file is what preprocessing has written beside its tokens."""
    return path.suffix == ".json" and path.with_suffix(".idx").exists()


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from error


def _is_hidden(name: str) -> bool:
    """Whether a file or folder is no data, by the habits of systems, editors and Spark."""
    return name.startswith((".", "~", "#")) or name in ("__MACOSX", "_temporary")


def _file(path: Path, kind: str) -> TextSource:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return TextSource(str(path), kind, status.st_size, status.st_mtime_ns)


def _size_below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.arrow"))
