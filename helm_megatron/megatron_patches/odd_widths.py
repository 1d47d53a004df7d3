"""Megatron starts with an odd feed-forward width.

Upstream: Megatron 0.19 warms its fused SwiGLU up on tensors of that width, which it cannot halve;
those of a model are twice as wide. Released HELM-D models have odd widths.
Here: such a width is not warmed up.
Goes: when the warm-up has the width of a gated layer.
"""

import functools

from helm_megatron.megatron_patches.replace import in_all_of_megatron

UPSTREAM = {
    "megatron.training.initialize.set_jit_fusion_options": "c1be95915ed4",
    "megatron.training.initialize._warmup_jit_function": "6c69d9d05759",
}


def apply() -> None:
    """Replace the function that warms up, wherever Megatron calls it."""
    from megatron.training import get_args
    from megatron.training.training import set_jit_fusion_options

    @functools.wraps(set_jit_fusion_options)
    def warm_up_even_widths(tp_size: int | None = None) -> None:
        args = get_args()
        if args.ffn_hidden_size // args.tensor_model_parallel_size % 2 == 0:
            set_jit_fusion_options(tp_size)

    in_all_of_megatron(set_jit_fusion_options, warm_up_even_widths)
