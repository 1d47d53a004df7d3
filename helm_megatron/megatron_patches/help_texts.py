"""`--help` shows Megatron's flags.

Upstream: a bare percent sign in one of Megatron 0.19's help texts makes argparse fail.
Here: such signs are doubled.
Goes: when Megatron's own parser prints its help.
"""

import argparse
import functools
import re
from typing import Any

UPSTREAM = {"megatron.training.arguments.add_megatron_arguments": None}


def apply() -> None:
    """Mend the texts as they are added to a parser."""
    from megatron.training import arguments

    add_megatron_arguments = arguments.add_megatron_arguments

    @functools.wraps(add_megatron_arguments)
    def with_mended_texts(*args: Any, **kwargs: Any) -> argparse.ArgumentParser:
        parser = add_megatron_arguments(*args, **kwargs)
        for action in parser._actions:
            action.help = re.sub(r"(?<!%)%(?![%(])", "%%", action.help or "")
        return parser

    arguments.add_megatron_arguments = with_mended_texts
