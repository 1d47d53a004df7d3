"""A pool of processes that stays up for the whole test run: importing Megatron takes seconds."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import traceback
from pathlib import Path
from typing import Any
from unittest import mock

# One thread a process, and CPU with gloo even where there is a GPU: the layouts need processes.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
# Four processes on two busy cores are slow.
SECONDS_UNTIL_HUNG = 600
SECONDS_TO_LEAVE = 10


class WorkerError(Exception):
    """A job failed; the message is the worker's traceback."""


def _serve(rank: int, module: str, connection: Any, log: Path) -> None:
    """Run the module's functions that are asked for, until the pool closes its end."""
    os.setsid()  # a group with what Megatron starts for writing checkpoints, to be ended as one
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    with contextlib.suppress(EOFError):
        while True:
            function, arguments = connection.recv()
            try:
                result = getattr(importlib.import_module(module), function)(rank, *arguments)
                connection.send((result, None))
            except BaseException:
                connection.send((None, traceback.format_exc()))


class Pool:
    """Processes forked from one that has imported the module; a job that fails ends them all.

    The module is not imported here: it may change torch, as Megatron's CPU platform does.
    """

    def __init__(self, size: int, module: str, directory: Path) -> None:
        self.size, self.module, self.directory = size, module, directory
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([module])
        self.workers: list[tuple[Any, Any]] = []

    def start(self) -> None:
        """Start the processes."""
        with mock.patch.dict(os.environ, ENVIRONMENT):
            for rank in range(self.size):
                ours, theirs = self.context.Pipe()
                log = self.directory / f"rank{rank}.log"
                arguments = (rank, self.module, theirs, log)
                process = self.context.Process(target=_serve, args=arguments)
                process.start()
                theirs.close()
                self.workers.append((process, ours))

    def stop(self) -> None:
        """Stop the processes; the next job starts new ones."""
        for _, connection in self.workers:
            connection.close()
        for process, _ in self.workers:
            process.join(SECONDS_TO_LEAVE)
            if process.exitcode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()  # it may not have made its group yet
                process.join()
        self.workers = []

    def run(self, world: int, function: str, *arguments: Any) -> list[Any]:
        """What the module's `function(rank, *arguments)` returns on the first `world` processes."""
        if not self.workers:
            self.start()
        connections = [connection for _, connection in self.workers[:world]]
        for connection in connections:
            connection.send((function, arguments))
        try:
            return self._results(connections)
        except BaseException:
            self.stop()  # the other ranks may wait for one that failed
            raise

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
                    raise WorkerError(f"rank {rank}: {error}")
        return [results[i] for i in range(len(connections))]
