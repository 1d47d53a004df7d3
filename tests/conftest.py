"""Fixtures for every test: Megatron on the CPU, in a process group of one. Tests by worker."""

import contextlib
import os
import resource
import signal
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

from helm_megatron import megatron_patches

megatron_patches.apply()  # before any test imports megatron

# Tests send these to programs that they start; under nohup and in scripts they would be ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

TESTS = Path(__file__).parent
# The longest first, so that no worker is left alone with one at the end.
LONGEST = [
    *("slurm", "distributed", "pretrain", "examples", "megatron_patches", "kernels", "conversion")
]
AUTO_MAPPINGS = [
    *("CONFIG_MAPPING", "MODEL_MAPPING", "MODEL_FOR_CAUSAL_LM_MAPPING", "TOKENIZER_MAPPING")
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-examples",
        type=int,
        metavar="N",
        help="tests/fuzz: so many damaged files of each kind, at random (default: 200, fixed)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort tests, and tell pytest-xdist (--dist loadgroup) which share a worker and its fixtures:
    those of a file; those of a model in test_layouts.py; all that need SLURM, of which is one.
    """

    def folder(item: pytest.Item) -> str:
        return item.path.relative_to(TESTS).parts[0]

    items.sort(key=lambda i: LONGEST.index(folder(i)) if folder(i) in LONGEST else len(LONGEST))
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        model = item.callspec.params.get("model") if hasattr(item, "callspec") else None
        if item.path.name == "test_layouts.py" and model is not None:
            group = f"{item.path.name} {model.name}"
        else:
            group = "slurm" if folder(item) == "slurm" else str(item.path.relative_to(TESTS))
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory):
    """Processes that tests kill leave theirs (W&B's, at its import) where pytest will clean up."""
    os.environ["TMPDIR"] = str(tmp_path_factory.mktemp("tmp"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What Megatron sets when it builds a model (here a fixture's) is not for its next model."""
    for name in [name for name in os.environ if name.startswith("NVTE_")]:
        del os.environ[name]


@pytest.fixture(autouse=True)
def as_if_alone():
    """What ran before a test in its worker changes nothing for it: it has the same random numbers
    and environment, and no class of ours in transformers' Auto classes, which would be taken before
    a folder's code.
    """
    import torch

    torch.manual_seed(1234)
    environment = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(environment)
    auto = sys.modules.get("transformers.models.auto")
    if auto is not None:
        for name in AUTO_MAPPINGS:
            registered = getattr(auto, name)._extra_content
            for key in [k for k in registered if getattr(k, "model_type", k) == "helm"]:
                del registered[key]


@pytest.fixture
def small_disk():
    """In the block, no file of this process can grow beyond so many bytes."""

    @contextlib.contextmanager
    def limited(size: int):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


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
