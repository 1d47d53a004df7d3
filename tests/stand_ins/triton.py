"""Stand-in: every Triton kernel of this package in Triton's interpreter, on a CPU that says GPU.

What runs on CUDA in Triton runs here in numpy; what asks where a tensor lives is told, not here.
`TRITON_INTERPRET=1` must be set when the process starts.
"""

import os

from tests.stand_ins import cuda


def pretend() -> None:
    """Be that machine, from before megatron is imported."""
    assert os.environ["TRITON_INTERPRET"] == "1"
    cuda.pretend()
    from helm_megatron.kernels import dispatch

    dispatch.uses_triton = lambda x: x.element_size() <= 4
    dispatch.on_cpu = lambda x: False
