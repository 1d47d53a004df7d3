"""Runs of `helm_megatron.pretrain.main()` in processes forked from one that has imported it.

Every rank of every run is a fresh process, that one may kill, without the seconds of an import.
"""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from helm_megatron import megatron_patches

megatron_patches.apply()

from megatron.core.dist_checkpointing.strategies import filesystem_async  # noqa: E402

from helm_megatron import pretrain  # noqa: E402
from tests.pretrain.runs import DENSE  # noqa: E402

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])


@dataclass
class Ranks:
    """The processes of one run; `log` is what all of them print, `steps` what the last trained."""

    processes: list
    log: Path
    steps: Path

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def losses(self) -> dict[int, float]:
        """The training loss of every iteration done."""
        lines = self.steps.read_text().splitlines() if self.steps.exists() else []
        return {int(i): float(loss) for i, loss in (line.split() for line in lines)}

    def kill(self) -> None:
        """kill -9 every rank and what it has started (checkpoint writers)."""
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                process.kill()

    def join(self, seconds: float = 200) -> list[int]:
        """The exit codes of the ranks; those that are still there after the time are killed."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0, end - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        self.kill()
        for process in self.processes:
            process.join()
        assert None not in codes, f"ranks hang, exit codes {codes}:\n{self.output[-4000:]}"
        return codes

    def wait_for(self, condition: Callable[[], bool], seconds: float = 200) -> None:
        """Wait until the condition holds; fails if all ranks end first, or at the time."""
        end = time.monotonic() + seconds
        while not condition():
            alive = any(process.is_alive() for process in self.processes)
            assert alive and time.monotonic() < end, self.output[-4000:]
            time.sleep(0.01)


@dataclass
class Starter:
    """Starts runs that keep their logs in a folder."""

    folder: Path
    count: int = field(default=0)

    def start(self, *flags, processes: int = 1, fault: Callable[[int], None] | None = None):
        """Start `main()` with flags on ranks; each calls `fault(rank)` first, to plant one."""
        self.count += 1
        log, steps = (self.folder / f"run{self.count}.{kind}" for kind in ("log", "steps"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        argv = [*DENSE, *map(str, flags)]
        ranks = [
            SERVER.Process(target=_rank, args=(argv, r, processes, port, log, steps, fault))
            for r in range(processes)
        ]
        for process in ranks:
            process.start()
        return Ranks(ranks, log, steps)

    def run(self, *flags, processes: int = 1, fault=None) -> dict[int, float]:
        """Run to the end; returns the losses, and fails the test if the run did."""
        ranks = self.start(*flags, processes=processes, fault=fault)
        codes = ranks.join()
        assert codes == [0] * processes, ranks.output[-4000:]
        return ranks.losses

    def refused(self, *flags, processes: int = 1, fault=None) -> tuple[list[int], str]:
        """Exit codes and output of a run that should fail."""
        ranks = self.start(*flags, processes=processes, fault=fault)
        return ranks.join(), ranks.output


def _rank(argv, rank, world, port, log, steps, fault):
    os.setsid()
    out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    sys.argv = ["pretrain_helm.py", *argv]
    # Megatron would spawn the queue's process when it first saves: seconds of imports.
    filesystem_async.get_write_results_queue("fork")
    if rank == world - 1:
        _record(steps)
    if fault is not None:
        fault(rank)
    pretrain.main()


def _record(steps: Path) -> None:
    """Write the loss of every training step; the last pipeline stage has it."""
    from megatron.training import get_args, training

    train_step = training.train_step

    def recorded(*args, **kwargs):
        out = train_step(*args, **kwargs)
        if "lm loss" in out[0]:
            with steps.open("a") as file:
                file.write(f"{get_args().curr_iteration + 1} {float(out[0]['lm loss'])!r}\n")
        return out

    training.train_step = recorded
