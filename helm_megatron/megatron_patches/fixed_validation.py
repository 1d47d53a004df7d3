"""Validation on fixed sets, and bits per byte beside loss and perplexity.

Upstream: Megatron 0.19 goes on in the validation set from one evaluation to the next, so no two
losses are of the same samples; `--full-validation` of one set ends in a TypeError, and reads
micro-batches of 1 that do not fill an evaluation's; what a loss function reports is printed with a
perplexity of its own.
Here: a dataset that brings its own loader is read by it; an evaluation takes the iterations of its
set (`args.fixed_iterations`: of validation, of test); "bits per byte" gets a line and a tag.
Goes: when Megatron validates on the same samples every time, and reports more than losses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron.training import get_args, get_tensorboard_writer, training
from megatron.training.utils import print_rank_last

UPSTREAM = {
    "megatron.training.datasets.data_samplers.build_pretraining_data_loader": "de7cb12d9681",
    "megatron.training.training.evaluate": "ad7897318fc8",
    "megatron.training.training.evaluate_and_print_results": "2fc7a80beed5",
}

BITS_PER_BYTE = "bits per byte"


def apply() -> None:
    """Replace the functions where the training loop looks for them."""
    training.build_pretraining_data_loader = _own_loader(training.build_pretraining_data_loader)
    bits: list[float] = []
    training.evaluate = _without_bits(training.evaluate, bits)
    training.evaluate_and_print_results = _with_bits(training.evaluate_and_print_results, bits)


def _own_loader(megatrons: Callable) -> Callable:
    def build_pretraining_data_loader(dataset: Any, consumed_samples: int) -> Any:
        if hasattr(dataset, "loader"):
            return dataset.loader()
        return megatrons(dataset, consumed_samples)

    return build_pretraining_data_loader


def _without_bits(megatrons: Callable, bits: list[float]) -> Callable:
    def evaluate(*args: Any, **kwargs: Any) -> Any:
        found = megatrons(*args, **kwargs)
        if found[0] is not None and BITS_PER_BYTE in found[0]:
            bits.append(found[0].pop(BITS_PER_BYTE).item())
        return found

    return evaluate


def _with_bits(megatrons: Callable, bits: list[float]) -> Callable:
    def evaluate_and_print_results(
        prefix: str,
        forward_step_func: Callable,
        data_iterator: Any,
        model: Any,
        iteration: int,
        *others: Any,
        write_to_tensorboard: bool = True,
        **named: Any,
    ) -> None:
        args = get_args()
        if iterations := getattr(args, "fixed_iterations", None):
            args.eval_iters = iterations[prefix.endswith("on test set")]
        bits.clear()
        megatrons(
            prefix,
            forward_step_func,
            data_iterator,
            model,
            iteration,
            *others,
            write_to_tensorboard=write_to_tensorboard,
            **named,
        )
        writer = get_tensorboard_writer() if write_to_tensorboard else None
        for value in bits:
            print_rank_last(f" validation {BITS_PER_BYTE} at {prefix} | {value:.6E}")
            if writer:
                writer.add_scalar(f"{BITS_PER_BYTE} validation", value, iteration)

    return evaluate_and_print_results
