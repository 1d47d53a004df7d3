"""The default generator plays CUDA's too, so Megatron's random states govern CPU kernels.

Upstream: Megatron 0.19 seeds, saves and restores CUDA's generator; torch without CUDA has none, and
its CPU kernels draw from the default one.
Here: CUDA's generator is the default one. Data loaders get another: they would draw their seed from
the default one, on some ranks only and again when resuming, which on CUDA leaves the device's
generator alone.
Goes: when Megatron seeds the generator of the device that it computes on.
"""

import functools
from typing import Any

import torch
import torch.utils.data

from helm_megatron.megatron_patches.replace import set_all

_RANDOM = {
    "get_rng_state": lambda *args, **kwargs: torch.get_rng_state(),
    "set_rng_state": lambda state, *args, **kwargs: torch.set_rng_state(state),
    "initial_seed": lambda: torch.initial_seed(),
    "manual_seed": lambda seed: torch.default_generator.manual_seed(int(seed)),
    # torch.manual_seed() calls it
    "manual_seed_all": lambda seed: torch.default_generator.manual_seed(int(seed)),
}
UPSTREAM = dict.fromkeys(
    [f"torch.cuda{part}.{name}" for part in ("", ".random") for name in _RANDOM]
    + ["torch.utils.data.DataLoader.__init__"]
)


def apply() -> None:
    """Replace the functions of CUDA's random state, and the generator of data loaders."""
    for module in (torch.cuda, torch.cuda.random):
        set_all(module, _RANDOM)

    loaders = functools.cache(lambda: torch.Generator().manual_seed(torch.initial_seed()))
    init = torch.utils.data.DataLoader.__init__

    @functools.wraps(init)
    def loader_init(self: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("generator") is None:
            kwargs["generator"] = loaders()
        kwargs.pop("pin_memory", None)
        init(self, *args, **kwargs)

    set_all(torch.utils.data.DataLoader, {"__init__": loader_init})
