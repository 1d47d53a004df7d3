"""Runs of `helm_megatron.pretrain.main()` in forked processes, one a rank, that one may kill."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests import forked
from tests.pretrain.runs import DENSE


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

    def join(self, seconds: float = 200) -> list[int]:
        """The exit codes of the ranks; those that are still there after the time are killed."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0, end - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        forked.kill(*self.processes)
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

    def start(self, *flags, processes=1, fault: Callable[[int], None] | None = None, base=DENSE):
        """Start `main()` with flags on ranks; each calls `fault(rank)` first, to plant one."""
        self.count += 1
        log, steps = (self.folder / f"run{self.count}.{kind}" for kind in ("log", "steps"))
        argv = [*base, *map(str, flags)]
        ranks = [
            forked.start(run_rank, argv, environment, log, steps, fault)
            for environment in forked.ranks(processes)
        ]
        return Ranks(ranks, log, steps)

    def run(self, *flags, processes=1, fault=None, base=DENSE) -> dict[int, float]:
        """Run to the end; returns the losses, and fails the test if the run did."""
        ranks = self.start(*flags, processes=processes, fault=fault, base=base)
        codes = ranks.join()
        assert codes == [0] * processes, ranks.output[-4000:]
        return ranks.losses

    def refused(self, *flags, processes: int = 1, fault=None) -> tuple[list[int], str]:
        """Exit codes and output of a run that should fail."""
        ranks = self.start(*flags, processes=processes, fault=fault)
        return ranks.join(), ranks.output


def run_rank(argv, environment, log, steps, fault):
    forked.leave(log)
    os.environ |= environment
    rank, world = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    sys.argv = ["pretrain_helm.py", *argv]
    from helm_megatron import pretrain  # it changes torch, so not in pytest's own process

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
