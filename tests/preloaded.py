"""What a forked process has imported before it begins; see tests/forked.py."""

from helm_megatron import megatron_patches

megatron_patches.apply()

import datasets  # noqa: E402, F401

from helm_megatron import pretrain  # noqa: E402, F401
from helm_megatron.conversion import to_hf  # noqa: E402, F401
