"""`torchrun --nproc_per_node N -m helm_megatron.verify FLAGS`: prove a layout before using it."""

import sys

from helm_megatron import megatron_patches

megatron_patches.apply()  # before anything imports megatron

from helm_megatron.verify.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
