"""Verify a layout with a mistake in it: the temperature's gradient is not summed over ranks."""

import sys

from helm_megatron import megatron_patches

megatron_patches.apply()

from helm_megatron.layers import attention  # noqa: E402
from helm_megatron.verify.command import main  # noqa: E402

attention.copy_to_tensor_model_parallel_region = lambda x, group=None: x

if __name__ == "__main__":
    sys.exit(main())
