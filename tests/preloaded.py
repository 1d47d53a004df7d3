"""What a forked process has imported before it begins; see tests/forked.py."""

import inspect

from helm_megatron import megatron_patches

megatron_patches.apply()

import datasets  # noqa: E402, F401
from megatron.core.dist_checkpointing.strategies import filesystem_async  # noqa: E402

from helm_megatron import pretrain  # noqa: E402, F401
from helm_megatron.conversion import to_hf  # noqa: E402, F401

# Megatron would spawn the queue's process when it first saves: seconds of imports.
inspect.unwrap(filesystem_async.get_write_results_queue).__defaults__ = ("fork",)
