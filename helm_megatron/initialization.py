"""Initial weights that depend on the seed and on what a parameter is, never on the layout.

Megatron draws each shard from the random state of its rank, so that another layout is another
model. Here Megatron builds a model without drawing; then every value is taken from a Philox stream
(Salmon et al., SC 2011), a generator that gives its n-th number without those before. A parameter's
key is a hash of the seed and of its name in checkpoints, and n is the index of the value in the
whole tensor of that checkpoint. So a rank draws its shard and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from helm_megatron.transformer_config import HelmTransformerConfig

SEED = 1234  # Megatron's default
METHODS = ("init_method", "output_layer_init_method", "embedding_init_method")
EMBEDDING = "embedding.word_embeddings.weight"
# Values that are drawn at once: 16 bytes each while they are.
AT_ONCE = 2**21

InitMethod = Callable[[Tensor], Any]


@contextlib.contextmanager
def drawn_later(config: HelmTransformerConfig) -> Iterator[list[tuple[Tensor, InitMethod]]]:
    """Within, what is built of `config` notes which tensors are to be drawn by which method."""
    notes: list[tuple[Tensor, InitMethod]] = []
    methods = {name: getattr(config, name) for name in METHODS}

    def noting(method: InitMethod) -> InitMethod:
        @torch.no_grad()
        def note(tensor: Tensor) -> Tensor:
            notes.append((tensor, method))
            return tensor.fill_(math.nan)

        return note

    for name, method in methods.items():
        setattr(config, name, noting(method))
    try:
        yield notes
    finally:
        for name, method in methods.items():
            setattr(config, name, method)


@torch.no_grad()
def initialize(model: GPTModel, notes: list[tuple[Tensor, InitMethod]], seed: int) -> None:
    """Draw the noted parameters of this rank's part of a model; `notes` is emptied.

    Raises:
        RuntimeError: a parameter is not where it was when it was noted, or not in checkpoints.
        ValueError: a method of another kind than Megatron's flags name.
    """
    if not notes:  # perform_initialization is off
        return
    # Some backends wrap a parameter again, and some change its type: its memory tells which it is.
    methods = {tensor.data_ptr(): method for tensor, method in notes}
    metadata = {"dp_cp_group": model.pg_collection.dp_cp, "non_homogeneous_layers": True}
    for entry in nested_values(model.sharded_state_dict(metadata=metadata)):
        if not isinstance(entry, ShardedTensor | ShardedTensorFactory):
            continue
        method = methods.get(entry.data.data_ptr())
        if method is None:
            continue
        if entry.key == EMBEDDING:
            # The last pipeline stage's copy of a tied table is built as an output layer.
            method = model.config.embedding_init_method
        shards = entry.build() if isinstance(entry, ShardedTensorFactory) else entry
        for shard in nested_values({"": shards}):
            draw(shard, method, seed)
    notes.clear()
    lost = [name for name, value in model.named_parameters() if value.flatten()[:1].isnan().any()]
    if lost:
        raise RuntimeError(f"parameters without initial values: {', '.join(lost)}")


def draw(shard: ShardedTensor, method: InitMethod, seed: int) -> None:
    """Fill a shard of a parameter with its values of the whole tensor."""
    mean, std = _normal_of(method)
    key = int.from_bytes(hashlib.sha256(f"{seed} {shard.key}".encode()).digest()[:16], "little")
    flat = shard.data.reshape(-1)
    done = 0
    for start, length in runs(shard.global_shape, shard.global_offset, shard.data.shape):
        for first in range(start, start + length, AT_ONCE):
            count = min(AT_ONCE, start + length - first)
            drawn = normal(key, first, count, flat.device)
            flat[done : done + count] = drawn.mul_(std).add_(mean)
            done += count
    if flat.data_ptr() != shard.data.data_ptr():  # not contiguous, so it was a copy
        shard.data.copy_(flat.view_as(shard.data))


def _normal_of(method: Any) -> tuple[float, float]:
    keywords = getattr(method, "keywords", {})
    if getattr(method, "func", None) is not torch.nn.init.normal_ or len(keywords) != 2:
        raise ValueError(
            f"init method {method}: weights are drawn as Megatron's init_method_normal would; set "
            "init_method_std instead"
        )
    return keywords["mean"], keywords["std"]


def runs(
    whole: Sequence[int], offset: Sequence[int], shape: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Start and length of a shard's contiguous runs in the flat order of its whole tensor.

    `whole` may have further axes before those of the shard, whose `shape` there is 1.
    """
    shape = [1] * (len(whole) - len(shape)) + list(shape)
    split = max((i for i, size in enumerate(whole) if size != shape[i]), default=0)
    strides = [math.prod(whole[i + 1 :]) for i in range(len(whole))]
    first = sum(start * stride for start, stride in zip(offset, strides, strict=True))
    for index in np.ndindex(*shape[:split]):
        steps = zip(index, strides[:split], strict=True)
        yield first + sum(i * stride for i, stride in steps), shape[split] * strides[split]


def normal(key: int, start: int, count: int, device: torch.device) -> Tensor:
    """Values `start` to `start + count` of a standard normal stream, fp64 (Box and Muller, 1958).

    In fp64, so that they round to the same fp32 on every device, wherever a shard begins.
    """
    first = start // 2
    words = _words(key, first, (start + count + 1) // 2 - first)
    halves = words >> np.uint64(32), words & np.uint64(2**32 - 1)
    high, low = ((half + 0.5) * 2.0**-32 for half in halves)
    radius = torch.from_numpy(high).to(device).log_().mul_(-2).sqrt_()
    angle = torch.from_numpy(low).to(device).mul_(2 * math.pi)
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return pairs.flatten()[start - 2 * first :][:count]


def _words(key: int, start: int, count: int) -> np.ndarray:
    """64-bit words `start` to `start + count` of a stream; numpy's Philox makes four at a time."""
    block = start // 4
    generator = np.random.Philox(key=key, counter=block)
    return generator.random_raw(start - 4 * block + count)[start - 4 * block :]
