"""Hashes of the files that text is read from, made beside the tokenizing."""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from helm_megatron.data.inputs import TextSource


class FileHashes:
    """Hashes files in a thread, in the order they are read, so that each is read from disk once.

    Args:
        store: a file that keeps finished hashes for a run that resumes.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._known: dict[str, dict[str, Any]] = {}
        if store.exists():
            # What follows the last newline was not written whole.
            lines = store.read_text(encoding="utf-8").split("\n")[:-1]
            self._known = dict(json.loads(line) for line in lines)
        self._stopped = False
        self._executor = ThreadPoolExecutor(1)
        self._pending: dict[str, Future[None]] = {}

    def add(self, source: TextSource) -> None:
        """Begin to hash a file; what is no file has no hash."""
        if source.is_file and source.path not in self._known | self._pending:
            self._pending[source.path] = self._executor.submit(self._hash, source.path)

    def _hash(self, path: str) -> None:
        digest, size = hashlib.sha256(), 0
        with Path(path).open("rb") as file:
            while data := file.read(1 << 22):
                if self._stopped:
                    return
                digest.update(data)
                size += len(data)
        found = {"bytes": size, "sha256": digest.hexdigest()}
        with self._store.open("a", encoding="utf-8") as store:
            store.write(json.dumps([path, found]) + "\n")
        self._known[path] = found

    def all(self, sources: Iterable[TextSource]) -> list[dict[str, Any]]:
        """Wait for every hash; return the sidecar's entry for each source."""
        entries = []
        for source in sources:
            self.add(source)
            if source.path in self._pending:
                self._pending[source.path].result()
            named = {"config": source.config, "split": source.split, "revision": source.revision}
            entry = {"path": source.path, "format": source.format, "bytes": source.size}
            entry |= {name: value for name, value in named.items() if value}
            entries.append(entry | self._known.get(source.path, {}))
        return entries

    def close(self) -> None:
        """Stop hashing, at once."""
        self._stopped = True
        self._executor.shutdown(cancel_futures=True)
