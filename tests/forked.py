"""Processes and command lines forked from one that has imported Megatron: an import takes 10 s.

Every process of every run is a fresh one, that one may kill, without the seconds of its imports.
"""

import contextlib
import itertools
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[1]
# One thread a process, and CPU with gloo even where there is a GPU: the layouts need processes.
# The server finds what to import by PYTHONPATH; it would not say that it has not.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.preloaded"])
# Below the ports that the system hands out, and others in each of pytest's workers (gw0, gw1, ...):
# a port is bound only some time after it was chosen.
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
PORTS = itertools.cycle(range(10000 + WORKER % 4 * 5000, 15000 + WORKER % 4 * 5000))
for _ in range(os.getpid() % 5000):  # not those of a run of pytest at the same time
    next(PORTS)


def free_port() -> int:
    """A port of this machine that nobody uses."""
    for port in PORTS:
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port
    raise AssertionError("unreachable: the ports never end")


def start(target, *arguments) -> BaseProcess:
    """Start a function of a module in a forked process; it should begin with `leave`."""
    process = SERVER.Process(target=target, args=arguments)
    with mock.patch.dict(os.environ, ENVIRONMENT):  # the first start starts the server
        process.start()
    return process


def leave(stdout: Path, stderr: Path | None = None) -> None:
    """In the process: lead a group with all that it will start, and print into files."""
    os.setsid()
    for number, path in ((1, stdout), (2, stderr or stdout)):
        out = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(out, number)
        os.close(out)


def kill(*processes: BaseProcess) -> None:
    """kill -9 processes and what they have started (checkpoint writers, say)."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()  # it may not have made its group yet
    for process in processes:
        process.join()


def ranks(count: int) -> list[dict[str, str]]:
    """The environment that torchrun gives each of so many ranks."""
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def command(*argv, env=None, cwd=ROOT, timeout=600) -> subprocess.CompletedProcess[str]:
    """What `python program flags` or `python -m module flags` would do, for one process."""
    [done] = commands(*argv, envs=[env or {}], cwd=cwd, timeout=timeout)
    return done


def commands(*argv, envs, cwd=ROOT, timeout=600) -> list[subprocess.CompletedProcess[str]]:
    """The same of several processes, each with additions to the environment of its own."""
    words = list(map(str, argv))
    with tempfile.TemporaryDirectory() as folder:
        files = [(Path(folder, f"{i}.out"), Path(folder, f"{i}.err")) for i in range(len(envs))]
        processes = [
            start(_run, words, os.environ | ENVIRONMENT | env, cwd, outputs)
            for env, outputs in zip(envs, files, strict=True)
        ]
        for process in processes:
            process.join(timeout)
        codes = [process.exitcode for process in processes]
        kill(*processes)
        results = [
            subprocess.CompletedProcess(words, code, *(path.read_text() for path in outputs))
            for code, outputs in zip(codes, files, strict=True)
        ]
    assert None not in codes, f"{words} hangs:\n{results}"
    return results


def _run(argv: list[str], environment: dict[str, str], cwd, outputs) -> None:
    leave(*outputs)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    if argv[0] == "-m":
        sys.argv = argv[1:]
        sys.path.insert(0, str(cwd))
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        sys.path.insert(0, str(Path(argv[0]).parent))
        runpy.run_path(argv[0], run_name="__main__")
