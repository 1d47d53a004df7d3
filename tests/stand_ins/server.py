"""A process that is a stand-in's machine and forks the ranks of runs; see `Machine`.

    python -m tests.stand_ins.server cuda

A line of standard input is a run, as JSON: flags, number of processes, files of log and losses. It
is answered by a line of exit codes.
"""

import importlib
import json
import multiprocessing
import sys
import time
from multiprocessing import connection
from pathlib import Path

from tests import forked

AFTER_A_FAILURE = 10  # seconds that the other ranks get: they may wait for it


def main() -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr
    importlib.import_module(f"tests.stand_ins.{sys.argv[1]}").pretend()
    from tests import preloaded  # noqa: F401
    from tests.pretrain.forked import run_rank

    fork = multiprocessing.get_context("fork")
    for line in sys.stdin:
        argv, count, log, steps, seconds = json.loads(line)
        files = Path(log), Path(steps)
        ranks = [
            fork.Process(target=run_rank, args=(argv, environment, *files, None))
            for environment in forked.ranks(count)
        ]
        for rank in ranks:
            rank.start()
        codes = join(ranks, seconds)
        print(json.dumps(codes), file=answers, flush=True)


def join(ranks: list, seconds: float) -> list[int]:
    """Exit codes of the ranks; those that are left at the end, or after a failure, are killed."""
    end = time.monotonic() + seconds
    while alive := [rank for rank in ranks if rank.is_alive()]:
        connection.wait([rank.sentinel for rank in alive], max(0, end - time.monotonic()))
        if any(rank.exitcode for rank in ranks):
            end = min(end, time.monotonic() + AFTER_A_FAILURE)
        if time.monotonic() >= end:
            break
    forked.kill(*ranks)
    return [rank.exitcode for rank in ranks]


if __name__ == "__main__":
    main()
