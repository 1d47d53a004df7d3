"""Jobs in fresh processes, forked from one that has imported Megatron: an import takes seconds."""

from __future__ import annotations

import importlib
import multiprocessing.connection
import traceback
from pathlib import Path
from typing import Any

from tests import forked

# Four processes on two busy cores are slow.
SECONDS_UNTIL_HUNG = 600
SECONDS_TO_LEAVE = 10


class WorkerError(Exception):
    """A job failed; the message is the worker's traceback."""


def _work(
    rank: int, module: str, function: str, arguments: Any, connection: Any, log: Path
) -> None:
    """Send what the module's function returns, and the traceback if it raises."""
    forked.leave(log)
    try:
        result = getattr(importlib.import_module(module), function)(rank, *arguments)
        connection.send((result, None))
    except BaseException:
        connection.send((None, traceback.format_exc()))


class Pool:
    """Runs functions of a module in forked processes.

    The module is not imported here: it may change torch, as Megatron's CPU platform does. Every
    job has processes of its own, since gloo leaves threads behind whenever groups are destroyed:
    a process of many jobs would have thousands.
    """

    def __init__(self, module: str, directory: Path) -> None:
        self.module, self.directory = module, directory

    def run(self, world: int, function: str, *arguments: Any) -> list[Any]:
        """What the module's `function(rank, *arguments)` returns on each of `world` processes."""
        workers = [self._start(rank, function, arguments) for rank in range(world)]
        try:
            return self._results([connection for _, connection in workers])
        finally:
            for process, connection in workers:
                connection.close()
                process.join(SECONDS_TO_LEAVE)
            forked.kill(*(process for process, _ in workers))

    def _start(self, rank: int, function: str, arguments: Any) -> tuple[Any, Any]:
        ours, theirs = forked.SERVER.Pipe()
        log = self.directory / f"rank{rank}.log"
        process = forked.start(_work, rank, self.module, function, arguments, theirs, log)
        theirs.close()
        return process, ours

    def _results(self, connections: list[Any]) -> list[Any]:
        results: dict[int, Any] = {}
        while len(results) < len(connections):
            missing = {c: i for i, c in enumerate(connections) if i not in results}
            ready = multiprocessing.connection.wait(list(missing), SECONDS_UNTIL_HUNG)
            if not ready:
                raise WorkerError(f"ranks {sorted(missing.values())} hang")
            for connection in ready:
                rank = missing[connection]
                try:
                    results[rank], error = connection.recv()
                except EOFError:
                    error = f"died; see {self.directory}/rank{rank}.log"
                if error is not None:
                    # The other ranks may wait for this one: they are ended with it.
                    raise WorkerError(f"rank {rank}: {error}")
        return [results[i] for i in range(len(connections))]
