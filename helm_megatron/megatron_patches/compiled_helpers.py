"""Megatron is spared the compilation of its dataset helpers.

Upstream: Megatron 0.19 runs `make` for them at every start and exits if that fails; its wheel has
them compiled, and no Makefile.
Here: they are compiled only if they cannot be imported.
Goes: when the wheel's own `compile_helpers` succeeds.
"""

import functools

UPSTREAM = {"megatron.core.datasets.utils.compile_helpers": "02c160f0fa9c"}


def apply() -> None:
    """Replace the function; Megatron imports it where it calls it."""
    from megatron.core.datasets import utils

    compile_helpers = utils.compile_helpers

    @functools.wraps(compile_helpers)
    def compile_if_missing() -> None:
        try:
            import megatron.core.datasets.helpers_cpp  # noqa: F401
        except ImportError:
            compile_helpers()

    utils.compile_helpers = compile_if_missing
