"""Bytes that a training step really sends, counted in processes that talk over gloo."""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import socket
import tempfile
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helm_megatron import megatron_patches

megatron_patches.apply()

import torch  # noqa: E402
from megatron.core import parallel_state as ps  # noqa: E402
from megatron.core import tensor_parallel  # noqa: E402
from shapes import model_args  # noqa: E402
from torch.distributed import ProcessGroup  # noqa: E402

from helm_megatron.process_groups import process_groups  # noqa: E402
from helm_megatron.verify.layouts import job  # noqa: E402

# Methods of a process group, of old and new versions of torch: name of the collective, and how many
# of the first arguments are data.
METHODS = {
    "allreduce": ("all-reduce", 1),
    "allreduce_coalesced": ("all-reduce", 1),
    "broadcast": ("broadcast", 1),
    "allgather": ("all-gather", 2),
    "_allgather_base": ("all-gather", 2),
    "all_gather_single": ("all-gather", 2),
    "all_gather_single_coalesced": ("all-gather", 2),
    "reduce_scatter": ("reduce-scatter", 2),
    "_reduce_scatter_base": ("reduce-scatter", 2),
    "reduce_scatter_single": ("reduce-scatter", 2),
    "reduce_scatter_single_coalesced": ("reduce-scatter", 2),
    "alltoall_base": ("all-to-all", 2),
    "all_to_all_single": ("all-to-all", 2),
    "send": ("send", 1),
}


def count_collectives(names: dict[str, str], least: int = 0) -> Counter[tuple[str, str]]:
    """Bytes of every collective of this process from now on, by collective and group.

    `names` are those of the groups, by torch's name. The size is that of the whole tensor
    (gathered, or before it is scattered); all-to-alls count half of what is sent and received, as
    these differ with uneven routing. Tensors of no more than `least` bytes are left out.
    """
    counted: Counter[tuple[str, str]] = Counter()

    def wrap(method: str, collective: str, data: int) -> None:
        original = getattr(ProcessGroup, method)

        def wrapper(group: ProcessGroup, *arguments: Any, **keywords: Any) -> Any:
            sizes = [size_of(argument) for argument in arguments[:data]]
            if group.size() > 1 and max(sizes) > least:
                size = sum(sizes) / 2 if collective == "all-to-all" else max(sizes)
                counted[collective, names.get(group.group_name, group.group_name)] += size
            return original(group, *arguments, **keywords)

        setattr(ProcessGroup, method, wrapper)

    for method, (collective, data) in METHODS.items():
        if hasattr(ProcessGroup, method):
            wrap(method, collective, data)
    return counted


def size_of(data: Any) -> int:
    """Bytes of a tensor, or of all those in nested lists."""
    if isinstance(data, torch.Tensor):
        return data.numel() * data.element_size()
    return sum(size_of(item) for item in data)


def sent_in_a_step(
    options: Namespace, cases: Sequence[tuple[str, Sequence[str]]], world: int
) -> list[dict[str, int]]:
    """For each case, a model's name and its flags: bytes of one step of `world` processes.

    By "collective, group", summed over the processes.
    """
    context = multiprocessing.get_context("spawn")
    ports = free_ports(len(cases))
    with tempfile.TemporaryDirectory() as directory:
        processes = [
            context.Process(target=_work, args=(r, world, ports, options, cases, Path(directory)))
            for r in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise SystemExit("error: a process failed; its reason is above")
        ranks = [json.loads(Path(directory, f"{r}.json").read_text()) for r in range(world)]
    totals: list[Counter[str]] = [Counter() for _ in cases]
    for rank in ranks:
        for total, counted in zip(totals, rank, strict=True):
            total.update(counted)
    return [dict(total) for total in totals]


def free_ports(count: int) -> list[int]:
    """Ports where nothing listens. Each case has its own: a rank that is ahead would otherwise
    find the store of the case before.
    """
    with contextlib.ExitStack() as sockets:
        opened = [sockets.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in opened]


def _work(
    rank: int,
    world: int,
    ports: Sequence[int],
    options: Namespace,
    cases: Sequence[tuple[str, Sequence[str]]],
    directory: Path,
) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank))
    os.environ.update(WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    logging.getLogger("megatron").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    names: dict[str, str] = {}
    counted = count_collectives(names)
    results = []
    for (model, changes), port in zip(cases, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        args = model_args(options, model, changes, world)
        args.rank = args.local_rank = rank
        _one_step(args, names, counted)
        results.append({", ".join(key): size for key, size in counted.items()})
    Path(directory, f"{rank}.json").write_text(json.dumps(results))


def _one_step(args: Namespace, names: dict[str, str], counted: Counter) -> None:
    with process_groups(args):
        run = job(args, args.global_batch_size // args.micro_batch_size)
        optimizer = run.make_optimizer()
        names.clear()
        names.update(group_names())
        # Random routing, where it is asked for, is then the same for both models.
        tensor_parallel.model_parallel_cuda_manual_seed(args.seed, force_reset_rng=True)
        counted.clear()
        run.loss_of_step(0)
        optimizer.step()


def group_names() -> dict[str, str]:
    """The usual names of this rank's groups; of groups of the same ranks the last one's."""
    groups = {
        "tp": ps.get_tensor_model_parallel_group(),
        "cp": ps.get_context_parallel_group(),
        "ep": ps.get_expert_model_parallel_group(),
        "pp": ps.get_pipeline_model_parallel_group(),
        "dp": ps.get_data_parallel_group(with_context_parallel=True),
        "expert-dp": ps.get_expert_data_parallel_group(),
        "tp-ep": ps.get_expert_tensor_and_model_parallel_group(),
    }
    return {group.group_name: name for name, group in groups.items()}
