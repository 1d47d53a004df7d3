"""Without data for validation there is none.

Upstream: Megatron 0.19 validates whenever `--eval-iters` is positive, at intervals and at the end,
and then draws batches from data that is not there.
Here: it does not, if the command line gives validation no data.
Goes: when upstream asks whether there is a validation dataset, as it does for the test's.
"""

import functools
from typing import Any

from megatron.training import get_args, training
from megatron.training.utils import print_rank_0

from helm_megatron.data.training.parts import has_part

UPSTREAM = {"megatron.training.training.build_train_valid_test_data_loaders": "6b7e53112d36"}


def apply() -> None:
    """Wrap the function."""
    build = training.build_train_valid_test_data_loaders

    @functools.wraps(build)
    def build_train_valid_test_data_loaders(provider: Any) -> Any:
        loaders = build(provider)
        args = get_args()
        if args.do_valid and not has_part(args, "valid"):
            print_rank_0("no data for validation: there will be none")
            args.do_valid = False
        return loaders

    training.build_train_valid_test_data_loaders = build_train_valid_test_data_loaders
