"""Checkpoints of the local backend load into Transformer Engine.

Upstream: Megatron 0.19 asks a torch_dist checkpoint for the extra state of each of Transformer
Engine's modules (what FP8 has measured), and fails if there is none, as in one that was saved with
the local backend, unless with `--dist-ckpt-strictness log_all`, which forgives weights too.
Here: extra states that a checkpoint does not have are not asked for; the modules make their own.
Goes: when Megatron takes a missing extra state for a new one.
"""

import functools
from typing import Any

UPSTREAM = {"megatron.core.dist_checkpointing.serialization.load": "982f100b500f"}


def apply() -> None:
    """Replace the loading of checkpoints, where Megatron's training calls it."""
    from megatron.core import dist_checkpointing

    load = dist_checkpointing.load

    @functools.wraps(load)
    def load_what_is_there(
        sharded_state_dict: Any, checkpoint_dir: str, *args: Any, **kwargs: Any
    ) -> Any:
        wanted = without_missing_extra_states(sharded_state_dict, checkpoint_dir)
        return load(wanted, checkpoint_dir, *args, **kwargs)

    dist_checkpointing.load = load_what_is_there  # type: ignore[assignment]


def without_missing_extra_states(sharded_state_dict: Any, checkpoint_dir: str) -> Any:
    """A state dict to load, without the extra states that are not in the checkpoint."""
    from megatron.core.dist_checkpointing.dict_utils import extract_matching_values, nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedObject
    from torch.distributed.checkpoint import FileSystemReader

    def is_extra_state(value: Any) -> bool:
        return isinstance(value, ShardedObject) and value.key.endswith("._extra_state")

    if not any(map(is_extra_state, nested_values(sharded_state_dict))):
        return sharded_state_dict
    stored = FileSystemReader(checkpoint_dir).read_metadata().state_dict_metadata
    _, rest = extract_matching_values(
        sharded_state_dict, lambda x: is_extra_state(x) and x.unique_key not in stored
    )
    return rest
