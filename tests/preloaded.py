"""What a forked process has imported before it begins; see tests/forked.py."""

from helm_megatron import platform

platform.setup()

import datasets  # noqa: E402, F401

from helm_megatron import pretrain  # noqa: E402, F401
from helm_megatron.hf import convert  # noqa: E402, F401
