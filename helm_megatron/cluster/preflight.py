"""Check every node of a job before Megatron starts, and name the node that fails.

    python -m helm_megatron.cluster.preflight --node-rank 0 --node-names "node1 node2" \\
        --master-addr node1 --master-port 29500 -- MEGATRON_FLAGS

One process a node (slurm/node.sh starts it). Each looks at its own CPUs, GPUs, data, checkpoint
folder and code, and reports to the first node, which prints every problem; then the nodes connect
to each other and reduce over all ranks. Exit code 0 if all is well, 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from helm_megatron.cluster.node_checks import code_problems, code_version, local_problems, run_paths
from helm_megatron.errors import HelmError

RANK_ERRORS = (multiprocessing.ProcessRaisedException, multiprocessing.ProcessExitedException)


class PreflightError(HelmError):
    """What is wrong, one problem a line, each with its node."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """This program's flags; `flags` are Megatron's, those after `--`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--node-rank", type=int, required=True, help="this node's number")
    parser.add_argument("--node-names", type=str.split, required=True, help="all, by number")
    parser.add_argument("--master-addr", required=True, help="the first node's address")
    parser.add_argument("--master-port", type=int, required=True, help="a free port of it")
    parser.add_argument("--processes-per-node", type=int, default=1, help="ranks a node")
    parser.add_argument("--gpus-per-node", type=int, default=0, help="GPUs; 0 for a CPU run")
    parser.add_argument(
        "--preflight-timeout", type=float, default=40, help="seconds that nodes wait for others"
    )
    parser.add_argument("flags", nargs="*", help="the run's flags of Megatron, after --")
    return parser.parse_args(argv)


class Nodes:
    """All nodes of the job, which exchange reports through a TCPStore on the first.

    Raises:
        PreflightError: the first node cannot be reached, or cannot listen.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.rank: int = args.node_rank
        self.names: list[str] = args.node_names
        self.name = self.names[self.rank]
        self.timeout: float = args.preflight_timeout
        self.address = f"{args.master_addr}:{args.master_port}"
        if self.rank != 0:
            self._wait_for_first_node(args.master_addr, args.master_port)
        try:
            self.store = dist.TCPStore(
                args.master_addr,
                args.master_port,
                is_master=self.rank == 0,
                wait_for_workers=False,
                timeout=timedelta(seconds=self.timeout),
            )
        except RuntimeError as error:
            raise PreflightError(self._no_store(error)) from error

    def _wait_for_first_node(self, address: str, port: int) -> None:
        # TCPStore, too, would try again, but much longer than its timeout, and not say why.
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                return socket.create_connection((address, port), timeout=5).close()
            except OSError as error:
                if time.monotonic() > deadline:
                    raise PreflightError(
                        f"{self.name}: cannot connect to {self.address} ({error}): is the port "
                        "blocked, or MASTER_ADDR no address in this cluster's network?"
                    ) from error
            time.sleep(0.5)

    def _no_store(self, error: Exception) -> str:
        in_use = "EADDRINUSE" in str(error) or "in use" in str(error)
        why = "it is in use; set MASTER_PORT" if in_use else str(error).splitlines()[0]
        return f"{self.name}: no common store on {self.address}: {why}"

    def report(self, stage: str, mine: object) -> None:
        """Tell the other nodes something."""
        self.store.set(f"{stage}/{self.rank}", json.dumps(mine))

    def gather(self, stage: str, seconds: float | None = None) -> list:
        """Every node's report of a stage; None for those that did not give one in time."""
        deadline = time.monotonic() + (self.timeout if seconds is None else seconds)
        return [self.get(stage, rank, deadline) for rank in range(len(self.names))]

    def get(self, stage: str, rank: int, deadline: float) -> Any:
        """One node's report of a stage, or None."""
        key = f"{stage}/{rank}"
        try:
            self.store.wait([key], timedelta(seconds=max(deadline - time.monotonic(), 1)))
            return json.loads(self.store.get(key))
        except RuntimeError:
            return None

    def agree(self, stage: str, problem: str | None) -> None:
        """End on every node if any has a problem, or gives no answer; see `end_if`."""
        self.report(stage, problem or "")
        problems = []
        if self.rank == 0:
            answers = self.gather(stage)
            problems = self.silent(answers)
            problems += [f"{n}: {a}" for n, a in zip(self.names, answers, strict=True) if a]
        self.end_if(stage, problems)

    def silent(self, answers: list) -> list[str]:
        """The nodes that gave no answer, in words."""
        return [
            f"{name}: did not answer on {self.address} within {self.timeout:g} s: is it up, and "
            "the port not blocked?"
            for name, answer in zip(self.names, answers, strict=True)
            if answer is None
        ]

    def end_if(self, stage: str, problems: list[str]) -> None:
        """End on every node if the first one knows of problems.

        Raises:
            PreflightError: on the first node, with the problems; the others exit with code 1.
        """
        if self.rank == 0:
            self.report(f"{stage} verdict", len(problems))
            if problems:
                self.leave()
                raise PreflightError("\n".join(problems))
            return
        # The first node may wait for others as long as for this one.
        verdict = self.get(f"{stage} verdict", 0, time.monotonic() + 2 * self.timeout)
        if verdict is None:
            raise PreflightError(f"{self.name}: lost {self.names[0]} during the {stage} check")
        if verdict:
            self.leave()
            sys.exit(1)

    def leave(self) -> None:
        """Say that this node needs the first one no more; that one waits for all to say so."""
        self.report("left", True)
        if self.rank == 0:
            self.gather("left", seconds=2)


def check_nodes(nodes: Nodes, found: list[str]) -> None:
    """Bring together what every node found on itself, and compare the nodes' code."""
    nodes.report("node", {"problems": found, "code": code_version()})
    if nodes.rank != 0:
        return nodes.end_if("node", [])
    reports = nodes.gather("node")
    problems = nodes.silent(reports)
    answered = [(n, report) for n, report in zip(nodes.names, reports, strict=True) if report]
    problems += [f"{name}: {text}" for name, report in answered for text in report["problems"]]
    codes = [report["code"] for _, report in answered]
    problems += code_problems([name for name, _ in answered], codes)
    nodes.end_if("node", problems)


def check_shared_folder(nodes: Nodes, save: str) -> None:
    """Whether all nodes see the first one's checkpoint folder, not one of the same name."""
    folder = Path(save)
    problem = None
    with tempfile.TemporaryDirectory(prefix=".preflight-", dir=folder) as token:
        nodes.report("token", Path(token).name)
        first = nodes.get("token", 0, time.monotonic() + nodes.timeout)
        if first is not None and not (folder / first).exists():
            problem = f"checkpoint folder {folder} is not the one that {nodes.names[0]} has"
        nodes.agree("folder", problem)


def check_connections(nodes: Nodes) -> None:
    """Whether each node can connect to the next one, on a port that the system chooses."""
    with socket.create_server(("", 0)) as server:
        nodes.report("port", server.getsockname()[1])
        following = (nodes.rank + 1) % len(nodes.names)
        port = nodes.get("port", following, time.monotonic() + nodes.timeout)
        name, problem = nodes.names[following], None
        try:
            if port is not None:
                socket.create_connection((name, port), timeout=10).close()
        except OSError as error:
            problem = f"cannot connect to {name}:{port} ({error}); ranks use ports like this one"
        nodes.agree("connection", problem)


def reduce_on_rank(local_rank: int, args: argparse.Namespace) -> None:
    """One rank's all-reduce: NCCL on its GPU, or gloo."""
    processes = args.processes_per_node
    world = processes * len(args.node_names)
    limit = timedelta(seconds=args.preflight_timeout)
    on_gpu = args.gpus_per_node > 0
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    store = dist.TCPStore(args.master_addr, args.master_port, is_master=False, timeout=limit)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=dist.PrefixStore("reduce", store),
        rank=args.node_rank * processes + local_rank,
        world_size=world,
        timeout=limit,
    )
    ones = torch.ones(1 << 20, device=device)
    dist.all_reduce(ones)
    if (wrong := (ones != world).sum().item()) > 0:  # waits for the GPU, too
        raise PreflightError(f"{wrong} of {len(ones)} sums are wrong")
    dist.destroy_process_group()


def check_all_reduce(nodes: Nodes, args: argparse.Namespace) -> None:
    """An all-reduce over all ranks of all nodes."""
    problem = None
    ranks = multiprocessing.start_processes(
        reduce_on_rank, (args,), args.processes_per_node, join=False, start_method="spawn"
    )
    deadline = time.monotonic() + nodes.timeout
    try:
        while problem is None and not ranks.join(timeout=1):
            if time.monotonic() > deadline:
                problem = f"the all-reduce did not end within {nodes.timeout:g} s"
    except RANK_ERRORS as error:  # whatever NCCL or gloo raised there
        problem = f"the all-reduce failed: {str(error).strip().splitlines()[-1]}"
    for process in ranks.processes:
        process.kill()
    nodes.agree("all-reduce", problem)


def preflight(args: argparse.Namespace) -> None:
    """Run every check.

    Raises:
        PreflightError: with a line for each problem that is known here.
    """
    found = local_problems(args.flags, args.gpus_per_node, args.processes_per_node)
    try:
        nodes = Nodes(args)
    except PreflightError as error:
        name = args.node_names[args.node_rank]
        lines = [str(error), *(f"{name}: {problem}" for problem in found)]
        raise PreflightError("\n".join(lines)) from error
    check_nodes(nodes, found)
    if save := run_paths(args.flags).save:
        check_shared_folder(nodes, save)
    check_connections(nodes)
    check_all_reduce(nodes, args)
    nodes.leave()
    if nodes.rank == 0:
        ranks = args.processes_per_node * len(nodes.names)
        print(f"preflight: {len(nodes.names)} nodes, {ranks} ranks: all is well", flush=True)


def main() -> None:
    """The command line."""
    args = parse_args()
    try:
        preflight(args)
    except HelmError as error:
        for line in str(error).splitlines():
            print(f"preflight: error: {line}", file=sys.stderr, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
