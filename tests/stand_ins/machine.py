"""Runs of `pretrain_helm.py` on the machine of a stand-in."""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests import forked
from tests.pretrain.forked import Ranks
from tests.pretrain.runs import DENSE


@dataclass
class Machine:
    """One process with everything imported, from which the ranks of each run are forked."""

    process: subprocess.Popen
    folder: Path
    count: int = 0

    def start(
        self, *flags, processes=1, base=DENSE, program="pretrain", seconds=200
    ) -> tuple[list[int], Ranks]:
        """Run a program to the end; returns exit codes, and what the ranks logged."""
        self.count += 1
        log, steps = (self.folder / f"run{self.count}.{kind}" for kind in ("log", "steps"))
        argv = [*base, *map(str, flags)]
        line = json.dumps([program, argv, processes, str(log), str(steps), seconds])
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, (self.folder / "machine.log").read_text()[-4000:]
        return json.loads(answer), Ranks([], log, steps)

    def run(self, *flags, processes=1, base=DENSE) -> dict[int, float]:
        """Run to the end; returns the losses, and fails the test if the run did."""
        codes, ranks = self.start(*flags, processes=processes, base=base)
        assert codes == [0] * processes, f"{codes}\n{ranks.output[-4000:]}"
        return ranks.losses

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def start(stand_in: str, folder: Path, **environment: str) -> Machine:
    """A machine by the name of its module in `tests.stand_ins`."""
    env = os.environ | forked.ENVIRONMENT | environment
    env.pop("CUDA_DEVICE_MAX_CONNECTIONS", None)
    with (folder / "machine.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.stand_ins.server", stand_in],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=forked.ROOT,
            env=env,
        )
    return Machine(process, folder)
