"""Fixtures for every test: Megatron on the CPU, in a process group of one."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

from helm_megatron import megatron_patches

megatron_patches.apply()  # before any test imports megatron


@pytest.fixture(scope="session")
def one_process(tmp_path_factory):
    """A process group of one with Megatron's parallel state and seeded random trackers."""
    import torch.distributed as dist
    from megatron.core import parallel_state, tensor_parallel

    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(1234)
    yield
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
