"""Megatron's training loop on a machine without CUDA: CPU tensors, gloo, one process per rank.

Megatron-Core asks for CUDA by name ("cuda" as a device, `torch.cuda`'s streams, statistics and
random states), yet nothing that it computes needs it. The patches in this folder answer these
requests with the CPU and mend what gloo refuses; where CUDA is available none is applied. They can
go when Megatron trains without CUDA by itself.
"""

from typing import Any

import torch

DEFAULTS: dict[str, Any] = {
    "distributed_backend": "gloo",
    "transformer_impl": "local",  # Transformer Engine's modules refuse to be built without CUDA
    "async_strategy": "mcore",  # "nvrx" needs nvidia-resiliency-ext
    "disable_jit_fuser": True,  # torch.compile would take minutes of a CPU run's start
    "gradient_accumulation_fusion": False,  # this and what follows are CUDA kernels
    "masked_softmax_fusion": False,
    "apply_rope_fusion": False,
    "no_persist_layer_norm": True,
    "rerun_mode": "disabled",  # it tells a faulty GPU by comparing it with another
}


def is_cpu() -> bool:
    """Whether Megatron has to run on the CPU here: no CUDA device is available."""
    return not torch.cuda.is_available()


def defaults() -> dict[str, Any]:
    """Defaults of Megatron's arguments for `parser.set_defaults(**...)`; none where CUDA is."""
    return dict(DEFAULTS) if is_cpu() else {}
