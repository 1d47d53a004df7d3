"""Count what torch operations do: bytes alive, floating-point operations, bytes communicated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed import ProcessGroup
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# Collectives by their operator: the usual name, and where its process group stands.
_COLLECTIVES = {
    "allreduce_": ("all-reduce", 1),
    "broadcast_": ("broadcast", 1),
    "_allgather_base_": ("all-gather", 2),
    "allgather_": ("all-gather", 2),
    "_reduce_scatter_base_": ("reduce-scatter", 2),
    "reduce_scatter_": ("reduce-scatter", 2),
    "alltoall_base_": ("all-to-all", 2),
    "alltoall_": ("all-to-all", 2),
}
_ATTENTION = "scaled_dot_product"

# Collectives of a few numbers (losses, token counts) cost their latency only and are not counted.
SMALL = 1024


@dataclass
class Section:
    """What one part of the model does in one direction.

    `flops` are those of matrix products, attention at its causal half; `bytes` are those of the
    whole tensor of a collective (gathered, or before it is scattered), by collective and group.
    `start`, `peak` and `end` are bytes alive in the course of it.
    """

    flops: float = 0.0
    bytes: Counter[tuple[str, str]] = field(default_factory=Counter)
    start: int = 0
    peak: int = 0
    end: int = 0


class Trace(TorchDispatchMode):
    """Adds up, by section, what is done while the mode is on.

    `groups` are names of process groups; collectives in others keep torch's name for them.
    """

    def __init__(self, groups: dict[str, str]) -> None:
        super().__init__()
        self.groups = groups
        self.sections: dict[str, Section] = {}
        self.alive = 0
        # Weak references, which also keep a storage's address from being given to another.
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self._section = Section()

    def ignore(self, tensors: Iterable[torch.Tensor]) -> None:
        """Memory that was there before: parameters, of which operations return views."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._storages[storage._cdata] = StorageWeakRef(storage), 0

    def enter(self, name: str) -> None:
        """What follows belongs to the section of this name."""
        self.finish()
        self._section = self.sections.setdefault(name, Section(start=self.alive, peak=self.alive))

    def finish(self) -> None:
        """The present section ends here."""
        self._forget_freed()
        self._section.end = self.alive

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "c10d":
            self._collective(func, args)
        elif (operator := func._overloadpacket) in flop_registry:
            flops = flop_registry[operator](*args, **(kwargs or {}), out_val=out)
            self._section.flops += flops * (_causal_share(operator, args) or 1.0)
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._allocate(tensor.untyped_storage())
        if self.alive > self._section.peak:
            self._forget_freed()
            self._section.peak = max(self._section.peak, self.alive)
        return out

    def _allocate(self, storage: Any) -> None:
        if storage._cdata not in self._storages:
            self._storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
            self.alive += storage.nbytes()

    def _forget_freed(self) -> None:
        """Until then `alive` also has what was freed since the last time."""
        freed = [key for key, (storage, _) in self._storages.items() if storage.expired()]
        self.alive -= sum(self._storages.pop(key)[1] for key in freed)

    def _collective(self, func: Any, args: tuple) -> None:
        name = func._overloadpacket.__name__
        if name not in _COLLECTIVES:
            return
        collective, position = _COLLECTIVES[name]
        group = ProcessGroup.unbox(args[position])
        sizes = [
            sum(t.numel() * t.element_size() for t in tree_leaves(arg) if torch.is_tensor(t))
            for arg in args[:position]
        ]
        if group.size() > 1 and max(sizes) > SMALL:
            name = self.groups.get(group.group_name, group.group_name)
            self._section.bytes[collective, name] += max(sizes)


def _causal_share(operator: Any, args: tuple) -> float | None:
    """The part of the scores of q queries and k keys that is not masked; None for no attention."""
    if _ATTENTION not in operator.__name__:
        return None
    first = 1 if operator.__name__.endswith("backward") else 0
    q, k = (args[first + i].shape[-2] for i in range(2))
    return 1 - (q - 1) / (2 * k)
