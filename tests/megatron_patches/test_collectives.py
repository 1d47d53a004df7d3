"""The collectives that Megatron uses, on gloo, by three processes."""

import json
import traceback
from datetime import timedelta

import collectives
import pytest
import torch

from helm_megatron import megatron_patches
from tests import forked

WORLD = 3
CASES = [(check.__name__, dtype) for check in collectives.CHECKS for dtype in collectives.DTYPES]


def run_checks(rank, directory):
    forked.leave(directory / f"{rank}.log")
    megatron_patches.apply()
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{directory}/store",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=30),
    )
    failures = {}
    for name, dtype in CASES:
        try:
            getattr(collectives, name)(dtype)
        except Exception:
            failures[f"{name} {dtype}"] = traceback.format_exc()
    (directory / f"{rank}.json").write_text(json.dumps(failures))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    directory = tmp_path_factory.mktemp("collectives")
    processes = [forked.start(run_checks, rank, directory) for rank in range(WORLD)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * WORLD
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(WORLD)]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_gives_what_its_definition_says(failures, name, dtype):
    for rank, failed in enumerate(failures):
        key = f"{name} {dtype}"
        assert key not in failed, f"rank {rank}: {failed[key]}"
