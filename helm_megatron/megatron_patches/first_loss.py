"""The first loss that is printed after a start is counted once.

Upstream: the training loop of Megatron 0.19 prints its first iteration in any case, and keeps that
in the mean of the interval under way. Where an interval ends with that iteration, as all do with
`--log-interval 1`, the next line is the mean, and the time, of both intervals.
Here: there the first iteration is printed as every end of an interval is.
Goes: when upstream resets its sums there.
"""

import functools
import inspect
from typing import Any

from megatron.training import get_args, training

UPSTREAM = {"megatron.training.training.training_log": "7e7ebec01bcf"}


def apply() -> None:
    """Wrap the function."""
    log = training.training_log
    parameters = inspect.signature(log)

    @functools.wraps(log)
    def training_log(*values: Any, **named: Any) -> Any:
        given = parameters.bind(*values, **named).arguments
        if given["iteration"] % get_args().log_interval == 0:
            given["is_first_iteration"] = False
        return log(**given)

    training.training_log = training_log
