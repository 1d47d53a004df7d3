"""Writing a torch_dist checkpoint of a model, one parameter at a time, from one process."""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.mapping import (
    ShardedObject,
    ShardedTensor,
    ShardedTensorFactory,
)
from megatron.core.models.gpt import GPTModel
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    BytesIOWriteData,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from helm_megatron.checkpoint.files import COMMON_STATE
from helm_megatron.megatron_patches.checkpoint_hashes import HashedFile, write_manifest

# How the parameters are named in the file; Megatron reads it back before it loads them.
_CONTENT = {
    "singleton_local_shards": False,
    "non_homogeneous_layers": True,
    "chained_optim_avoid_prefix": True,
}


@dataclass(frozen=True)
class Stored:
    """Where one parameter lies in a stored tensor."""

    item: WriteItem
    name: str


@dataclass(frozen=True)
class Plan:
    """What a checkpoint of a model consists of."""

    tensors: list[Stored]
    objects: dict[str, Any]


def plan(model: GPTModel) -> Plan:
    """The checkpoint of a whole model, whose tensors may be fake; without optimizer state."""
    metadata = {**_CONTENT, "dp_cp_group": parallel_state.get_data_parallel_group(True)}
    state = model.sharded_state_dict(metadata=metadata)
    return Plan(
        [
            _stored(name, value)
            for name, value in state.items()
            if isinstance(value, ShardedTensor | ShardedTensorFactory)
        ],
        {v.unique_key: [v.data] for v in state.values() if isinstance(v, ShardedObject)},
    )


def write(
    folder: Path, plan: Plan, args: argparse.Namespace, read: Callable[[str], Tensor]
) -> None:
    """Write a checkpoint with the arguments of its run; `read` gives each parameter in turn."""
    common = {"args": args, "checkpoint_version": 3.0, "iteration": 0, "content_metadata": _CONTENT}
    objects = plan.objects | {COMMON_STATE: [{**common, "num_floating_point_operations_so_far": 0}]}
    folder.mkdir(parents=True)
    planner, writer = _Planner(plan.tensors, objects, read), _Writer(str(folder))
    try:
        dcp.save({}, storage_writer=writer, planner=planner, no_dist=True)
    except CheckpointException as error:
        # What the writer or `read` raised; torch wraps it, with its traceback as text. A full disk
        # makes torch.save fail once more when it ends its file.
        first: BaseException = next(iter(error.failures.values()))[0]
        cause: BaseException | None = first
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        raise cause or first from None
    write_manifest(folder, writer.hashes)
    save_config(CheckpointingConfig("torch_dist", 1), str(folder))


def _stored(name: str, value: Any) -> Stored:
    local = value.data
    # A factory stores the halves of a gated linear apart, which in one process lie together.
    part = value.build()[0] if isinstance(value, ShardedTensorFactory) else value
    sizes = (1,) * (len(part.global_shape) - local.dim()) + tuple(local.shape)
    data = TensorWriteData(
        chunk=ChunkStorageMetadata(torch.Size(part.global_offset), torch.Size(sizes)),
        properties=TensorProperties(dtype=local.dtype),
        size=torch.Size(part.global_shape),
    )
    index = MetadataIndex(part.key, part.global_offset)
    return Stored(WriteItem(index, WriteItemType.SHARD, tensor_data=data), name)


class _Writer(dcp.FileSystemWriter):
    """torch's writer, but for holding every tensor of a file until the last is written."""

    def storage_meta(self) -> StorageMeta:
        # torch's names the folder, which is not for the index: the checkpoint may be moved.
        return StorageMeta()

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        name = f"{plan.storage_data.prefix}0.distcp"
        results = []
        with HashedFile(Path(self.path, name)) as file:
            for item in plan.items:
                start = file.tell()
                data = planner.resolve_data(item)
                if isinstance(data, io.BytesIO):
                    file.write(data.getbuffer())
                else:
                    torch.save(_alone(data), file)
                length = file.tell() - start
                results.append(WriteResult(item.index, length, _StorageInfo(name, start, length)))
            os.fsync(file.fileno())
            self.hashes = {name: file.digest()}
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done


def _alone(tensor: Tensor) -> Tensor:
    """The tensor in a storage that holds nothing else, which torch.save would write too."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


class _Planner(SavePlanner):
    """A plan whose tensors are made when they are written."""

    def __init__(
        self, tensors: list[Stored], objects: dict[str, Any], read: Callable[[str], Tensor]
    ) -> None:
        self.read = read
        self.names = {(s.item.index.fqn, s.item.index.offset): s.name for s in tensors}
        self.bytes = {key: _pickled(value) for key, value in objects.items()}
        self.items = [s.item for s in tensors] + [
            WriteItem(
                MetadataIndex(key), WriteItemType.BYTE_IO, bytes_io_data=BytesIOWriteData(len(data))
            )
            for key, data in self.bytes.items()
        ]

    def set_up_planner(
        self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False
    ) -> None:
        pass

    def create_local_plan(self) -> SavePlan:
        return SavePlan(self.items)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        return create_default_global_save_plan(all_plans)

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        index = write_item.index
        if write_item.type == WriteItemType.BYTE_IO:
            return io.BytesIO(self.bytes[index.fqn])
        assert write_item.tensor_data is not None
        tensor = self.read(self.names[index.fqn, index.offset])
        return tensor.reshape(write_item.tensor_data.chunk.sizes)


def _pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
