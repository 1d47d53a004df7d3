"""A HELM model and its Euclidean twin in one process, and what their training steps take."""

from __future__ import annotations

import gc
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from measure import in_turns, peak_bytes, storage_bytes
from shapes import GEOMETRIES, model_args

from helm_megatron.megatron_patches.flops import num_floating_point_operations
from helm_megatron.process_groups import process_groups
from helm_megatron.verify.layouts import job


class Model:
    """One model with its optimizer: what is timed."""

    def __init__(self, args: Namespace, count: int) -> None:
        self.job = job(args, count)
        self.optimizer = self.job.make_optimizer()
        [self.chunk] = self.job.chunks
        shape = args.micro_batch_size, args.seq_length
        device = torch.cuda.current_device()
        self.tokens = torch.randint(args.padded_vocab_size, shape, device=device)
        self.positions = torch.arange(args.seq_length, device=device).expand(shape)

    def step(self) -> None:
        """Forward, backward and optimizer."""
        self.optimizer.zero_grad()
        self.job.loss_of_step(0)
        self.optimizer.step()

    @torch.no_grad()
    def forward(self) -> None:
        """The losses of one micro-batch."""
        self.chunk(self.tokens, self.positions, None, labels=self.tokens)

    def peak(self) -> int:
        """Bytes in use at the worst moment of a step, with what is kept between steps."""
        return peak_bytes(self.step) + storage_bytes(self._kept())

    def _kept(self) -> Iterator[Any]:
        for buffer in (*self.chunk.buffers, *self.chunk.expert_parallel_buffers):
            yield from (buffer.param_data, buffer.grad_data)
        yield from self.chunk.parameters()
        for one in getattr(self.optimizer, "chained_optimizers", [self.optimizer]):
            for group in one.optimizer.param_groups:
                yield from group["params"]
            for state in one.optimizer.state.values():
                yield from state.values()


def compare(options: Namespace, changes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By model: seconds and CPU seconds of a step and of forward alone, bytes, FLOPs.

    `options` are those of `add_steps` and `shapes.add_shape`; `changes` are pretrain_helm.py's
    flags.
    """
    args = {name: model_args(options, name, changes) for name in GEOMETRIES}
    count = options.micro_batches
    with process_groups(args["HELM"]):
        models = {name: Model(a, count) for name, a in args.items()}
        turns = options.steps, options.warm_up
        steps = in_turns({n: m.step for n, m in models.items()}, *turns)
        forwards = in_turns({n: m.forward for n, m in models.items()}, *turns)
        results = {
            name: {
                "step": asdict(steps[name]),
                "forward": asdict(forwards[name]),
                "bytes": model.peak(),
                "flops": num_floating_point_operations(args[name], count * len(model.tokens)),
                "tokens": count * model.tokens.numel(),
                "parameters": sum(p.numel() for p in model.chunk.parameters()),
            }
            for name, model in models.items()
        }
        del models
        gc.collect()
    return results


def ratio(results: dict[str, dict[str, Any]], *keys: str) -> float:
    """A number of HELM's divided by its twin's."""
    helm, twin = (results[name] for name in GEOMETRIES)
    for key in keys:
        helm, twin = helm[key], twin[key]
    return helm / twin


def add_steps(parser: Any, steps: int = 10) -> None:
    """The flags that say what is run."""
    parser.add_argument("--steps", type=int, default=steps, help="timed steps of each model")
    parser.add_argument("--warm-up", type=int, default=2, help="steps of each before")
    parser.add_argument("--micro-batches", type=int, default=1, help="in a step")
