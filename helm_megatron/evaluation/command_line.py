"""lm-eval's command line for the modules here that add a model to its own."""

import functools
import sys

import lm_eval.tasks
from lm_eval.__main__ import cli_evaluate

from helm_megatron.evaluation.presets import is_offline


def main() -> None:
    """Run lm-eval on the words of the command line, as `harness.command` makes them.

    lm-eval reads its own thousands of task files at each start, some ten seconds; where all tasks
    are this project's, it reads those only.
    """
    tasks = sys.argv[sys.argv.index("--tasks") + 1]
    if is_offline(tasks.split(",")):
        lm_eval.tasks.TaskManager = functools.partial(  # type: ignore[misc, assignment]
            lm_eval.tasks.TaskManager, include_defaults=False
        )
    cli_evaluate()
