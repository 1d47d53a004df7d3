"""No checkpoint runs code: what is unpickled of it is restricted.

Upstream: Megatron 0.19's torch_dist format has a pickled index, `.metadata`, beside the shards, and
pickled values in the shards; torch reads both without restriction.
Here: of the index only what an index consists of, of the values only what torch takes for data.
Goes: when torch's FileSystemReader restricts the index, and its loaders read only data.
"""

import io
import os
import pickle
import types
from typing import Any

import torch

UPSTREAM = {"torch.distributed.checkpoint.filesystem.pickle": None}

# All that an index consists of, besides torch's dtypes.
_INDEX_CLASSES = {
    "torch": "Size",
    "torch.serialization": "_get_layout",
    "torch.distributed.checkpoint.filesystem": "_StorageInfo _StoragePrefix",
    "torch.distributed.checkpoint.metadata": "BytesStorageMetadata ChunkStorageMetadata Metadata "
    "MetadataIndex StorageMeta TensorProperties TensorStorageMetadata _MEM_FORMAT_ENCODING",
    "torch.distributed.checkpoint.planner": "BytesIOWriteData SavePlan TensorWriteData WriteItem "
    "WriteItemType",
    "collections": "OrderedDict",
    "pathlib": "PosixPath",
    "pathlib._local": "PosixPath",
}


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in _INDEX_CLASSES.get(module, "").split():
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint needs")


def load_index(file: io.BufferedIOBase) -> Any:
    """The object in an index.

    Raises:
        pickle.UnpicklingError: it needs more than an index consists of.
    """
    return _IndexUnpickler(file).load()


def apply() -> None:
    """Restrict torch's reading of index and values."""
    from torch.distributed.checkpoint import filesystem

    os.environ.setdefault("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    # FileSystemReader's only use of pickle.load is the index.
    filesystem.pickle = types.SimpleNamespace(  # type: ignore[assignment]
        **vars(pickle) | {"load": load_index}
    )
