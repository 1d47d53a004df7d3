"""Every checkpoint has the hashes of its files, made as they are written; each rank checks a share.

Upstream: with --verify-integrity Megatron 0.19 reads a whole checkpoint again on rank 0 after it is
saved, to write integrity.json, and on rank 0 before it is loaded.
Here: integrity.json, in upstream's format, is always written, of hashes that the writers make of
what passes through them; with --verify-integrity each rank reads its share of the files at load.
(Not of what nvidia-resiliency-ext writes: there upstream's reading remains.)
Goes: when upstream hashes in the writers.
"""

import functools
import hashlib
import io
import json
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

_DIST = "megatron.core.dist_checkpointing"
_WRITER = f"{_DIST}.strategies.filesystem_async.FileSystemWriterAsync"
UPSTREAM = {
    f"{_WRITER}.write_preloaded_data": "53e3e3fb1043",
    f"{_WRITER}.finish": "d1765a5bf829",
    f"{_DIST}.validation.save_integrity_manifest": "d4bdbf3eb08e",
    f"{_DIST}.validation.verify_integrity_manifest": "d31f724994fe",
}

MANIFEST = "integrity.json"
INDEX = ".metadata"
# From here on a thread's work is longer than its start; hashlib then works beside other threads.
_LARGE = 1 << 18
# On the result of one item of a file: the hash of the whole file.
_ATTRIBUTE = "sha256_of_file"


class HashedFile(io.BufferedWriter):
    """A file to write from its beginning to its end, which tells the hash of what was written.

    What is large is hashed in a thread while it is written, and longer if it is of a tensor that is
    kept; else torch may free its memory when `write` returns.
    """

    def __init__(self, path: Any, mode: str = "wb") -> None:
        assert mode == "wb", "hashed files are written in one go"
        super().__init__(io.FileIO(path, "w"))
        self._hash = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1, "hash")  # begins with its first work
        self._hashing: Future[None] | None = None
        self._small = bytearray()  # not hashed yet
        self._kept: Any = None
        self.results: list[Any] = []

    def keep(self, tensor: Any) -> None:
        """Hold the tensor that is written now until it is hashed, for which nothing waits then.

        For writers that have all of their tensors in memory.
        """
        self._kept = tensor

    def write(self, data: Any) -> int:
        """Write bytes, or what is like them."""
        if memoryview(data).nbytes < _LARGE:
            self._small += data
            return super().write(data)
        kept = self._kept if _is_of(self._kept, data) else None
        small, self._small = self._small, bytearray()
        self._hashing = self._thread.submit(self._update, small, data, kept)
        try:
            return super().write(data)
        finally:
            if kept is None:
                self._wait()

    def _update(self, small: bytearray, large: Any, kept: Any) -> None:
        """Hash two parts, the second of which is memory of the tensor that is kept."""
        self._hash.update(small)
        self._hash.update(large)

    def _wait(self) -> None:
        if self._hashing is not None:
            self._hashing.result()
            self._hashing = None

    def digest(self) -> str:
        """Of what was written so far."""
        self._wait()
        self._hash.update(self._small)
        self._small = bytearray()
        return self._hash.hexdigest()

    def close(self) -> None:
        """Close the file, and leave its hash with the first result of an item of it."""
        try:
            super().close()
        finally:
            self._thread.shutdown()
        for result in self.results[:1]:
            setattr(result.storage_data, _ATTRIBUTE, self.digest())
        self.results, self._kept = [], None


def _is_of(tensor: Any, data: Any) -> bool:
    """Whether bytes are memory of a tensor."""
    if tensor is None:
        return False
    storage = tensor.untyped_storage()
    offset = np.frombuffer(data, np.uint8).ctypes.data - storage.data_ptr()
    return 0 <= offset <= storage.nbytes() - memoryview(data).nbytes


def write_manifest(folder: Path, hashes: dict[str, str]) -> None:
    """Write integrity.json of a checkpoint, for its shards; the index's hash is added."""
    hashes = {**hashes, INDEX: hash_of(folder / INDEX)}
    text = json.dumps({"algorithm": "sha256", "files": dict(sorted(hashes.items()))}, indent=2)
    (folder / MANIFEST).write_text(text + "\n")


def hash_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged(folder: Path, names: Iterable[str] | None = None) -> str | None:
    """The first file that is not what was written, of all in the manifest or of these; else None.

    Raises:
        OSError, ValueError: there is no manifest, or it cannot be read.
    """
    hashes = read_manifest(folder)
    for name in sorted(hashes if names is None else set(names) & hashes.keys()):
        if not (folder / name).is_file():
            return f"{folder / name} is missing"
        if hash_of(folder / name) != hashes[name]:
            return f"{folder / name} is damaged: not what {MANIFEST} says was written"
    return None


def read_manifest(folder: Path) -> dict[str, str]:
    """Hash by name of the files of a checkpoint.

    Raises:
        OSError, ValueError: there is no manifest, or it cannot be read.
    """
    content = json.loads((folder / MANIFEST).read_text())
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict) or content.get("algorithm") != "sha256":
        raise ValueError("no hashes in it")
    if any(Path(name).name != name or not isinstance(hash, str) for name, hash in files.items()):
        raise ValueError("it names files elsewhere")
    return files


def _finish(upstream: Any) -> Any:
    def finish(writer: Any, metadata: Any, results: list[list[Any]]) -> None:
        """Write the index as upstream does, then the hashes that came with the results."""
        hashes = {}
        for result in (result for of_rank in results for result in of_rank):
            place = result.storage_data
            if (found := place.__dict__.pop(_ATTRIBUTE, None)) is not None:
                hashes[place.relative_path] = found
        upstream(writer, metadata, results)
        if not writer.use_msc:
            write_manifest(Path(writer.checkpoint_dir), hashes)

    return finish


def _save(upstream: Any) -> Any:
    def save_integrity_manifest(checkpoint_dir: str) -> None:
        """Upstream's, unless the writers have written it."""
        folder = Path(checkpoint_dir)
        try:
            written = read_manifest(folder)[INDEX] == hash_of(folder / INDEX)
        except (OSError, ValueError, KeyError):
            written = False
        if not written:
            upstream(checkpoint_dir)

    return save_integrity_manifest


def verify_integrity_manifest(checkpoint_dir: str) -> None:
    """Check the files of a checkpoint, each rank its share; every rank raises if one is damaged.

    Raises:
        CheckpointingException: naming the file.
    """
    import torch.distributed as dist
    from megatron.core.dist_checkpointing.core import CheckpointingException

    folder = Path(checkpoint_dir)
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if ranks > 1 else 0
    try:
        sizes = {name: (folder / name).stat().st_size for name in read_manifest(folder)}
        names = sorted(sizes, key=lambda name: (-sizes[name], name))
        found = damaged(folder, names[rank::ranks])
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        found = (
            f"--verify-integrity: {folder / MANIFEST} cannot be used: {reason}; without the flag "
            "the checkpoint loads unchecked"
        )
    all_found: list[str | None] = [found]
    if ranks > 1:
        all_found = [None] * ranks
        dist.all_gather_object(all_found, found)
    for reason in all_found:
        if reason is not None:
            raise CheckpointingException(reason)


def apply() -> None:
    """Hash in the writers, and check on all ranks."""
    import torch
    from megatron.core.dist_checkpointing import serialization
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    write_item = filesystem_async._write_item

    @functools.wraps(write_item)  # the signature is looked at
    def _write_item(*args: Any, **kwargs: Any) -> Any:
        file = next((each for each in args if isinstance(each, HashedFile)), None)
        if file is not None:
            file.keep(next((each for each in args if isinstance(each, torch.Tensor)), None))
        result = write_item(*args, **kwargs)
        if file is not None:
            file.results.append(result)
        return result

    filesystem_async.open = HashedFile
    filesystem_async._write_item = _write_item
    writer = filesystem_async.FileSystemWriterAsync
    writer.finish = _finish(writer.finish)
    serialization.save_integrity_manifest = _save(serialization.save_integrity_manifest)
    serialization.verify_integrity_manifest = verify_integrity_manifest
