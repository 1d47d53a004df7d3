"""Time of a step of the embedding's optimizer against Megatron's Adam on the same table.

Of three kinds of batch: one that has every token, one that has a hundredth of them, always the
same, and one that draws so many anew each time, by Zipf's law. Ratios are of medians of steps that
take turns, so that both optimizers meet the same machine.
"""

import argparse
import statistics
import time

import torch
from measure import add_output, report

from helm_megatron.kernels.points import op as rows
from helm_megatron.megatron_patches.adam import FusedAdam

WARM_UP = 5


class Riemannian:
    """The part of Megatron's step that Riemannian Adam replaces, with Adam's state shapes."""

    def __init__(self, table: torch.Tensor) -> None:
        self.x = table
        self.momentum, self.second = torch.zeros_like(table), torch.zeros_like(table)
        self.steps = 0

    def step(self, grad: torch.Tensor) -> None:
        self.steps += 1
        rule = rows.Rule(1e-3, 0.9, 0.999, 1e-8, self.steps, 1.0)
        touched = rows.to_frame_(self.x, grad, 1.0)
        rows.step_([self.x, grad, self.momentum, self.second], touched, rule)


class Adam:
    """Megatron's Adam on the CPU."""

    def __init__(self, table: torch.Tensor) -> None:
        self.parameter = torch.nn.Parameter(table)
        self.optimizer = FusedAdam([self.parameter])

    def step(self, grad: torch.Tensor) -> None:
        self.parameter.grad = grad
        self.optimizer.step()


def gradient(kind: str, shape: tuple[int, int], random: torch.Generator) -> torch.Tensor:
    """The gradient of a batch: zero in the rows of tokens that it has not."""
    count = max(shape[0] // 100, 1)
    grad = torch.zeros(shape)
    if kind == "every token":
        return grad.normal_(generator=random)
    if kind == "same hundredth":
        chosen = torch.arange(0, shape[0], 100)
    else:
        frequency = 1 / torch.arange(1, shape[0] + 1)
        chosen = torch.multinomial(frequency, count, generator=random)
    grad[chosen] = torch.randn(len(chosen), shape[1], generator=random)
    return grad


def measure(kind: str, shape: tuple[int, int], steps: int) -> tuple[float, float]:
    """Median milliseconds of a step of Riemannian Adam and of Adam."""
    random = torch.Generator().manual_seed(0)
    table = 0.02 * torch.randn(shape, generator=random)
    optimizers = [Riemannian(table.clone()), Adam(table.clone())]
    times: list[list[float]] = [[], []]
    for step in range(WARM_UP + steps):
        grad = gradient(kind, shape, random)
        for optimizer, taken in zip(optimizers, times, strict=True):
            own = grad.clone()
            start = time.perf_counter()
            optimizer.step(own)
            if step >= WARM_UP:
                taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=32768)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--steps", type=int, default=200)
    add_output(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads or 1)
    table = []
    with torch.no_grad():
        for kind in ("every token", "same hundredth", "hundredth by Zipf's law"):
            riemannian, adam = measure(kind, (args.rows, args.width), args.steps)
            table.append(
                {
                    "batch": kind,
                    "Riemannian Adam, ms": f"{riemannian:.1f}",
                    "Adam, ms": f"{adam:.1f}",
                    "ratio": f"{riemannian / adam:.2f}",
                }
            )
    report(table, args.output)


if __name__ == "__main__":
    main()
