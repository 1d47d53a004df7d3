"""Megatron's training loop on a machine without CUDA: CPU tensors, gloo, one process per rank.

Megatron-Core asks for CUDA by name ("cuda" as a device, `torch.cuda`'s streams, statistics and
random states), yet nothing that it computes needs it. :func:`setup` answers these requests with the
CPU and mends what gloo refuses. Where CUDA is available it does nothing. Call it before megatron is
imported::

    from helm_megatron import platform
    platform.setup()
"""

import contextlib
import functools
import logging
import os
import resource
import sys
import types
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.utils.data

CPU_DEFAULTS: dict[str, Any] = {
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


def cpu_defaults() -> dict[str, Any]:
    """Defaults of Megatron's arguments for `parser.set_defaults(**...)`; none where CUDA is."""
    return dict(CPU_DEFAULTS) if is_cpu() else {}


@functools.cache
def setup() -> bool:
    """Let Megatron run on the CPU if there is no CUDA; imports megatron then. Safe to call again.

    Returns:
        True if Megatron runs on the CPU, False if CUDA is available: then nothing was changed.
    Raises:
        RuntimeError: megatron is imported already and has kept what would be replaced.
    """
    if not is_cpu():
        return False
    if "megatron.core" in sys.modules:
        raise RuntimeError("call helm_megatron.platform.setup() before megatron is imported")
    # It warns that there is no CUDA.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    _redirect_devices()
    _stand_in_for_cuda()
    _share_the_generator()
    _mend_gloo()
    _mend_megatron()
    return True


def use_compiled_helpers() -> None:
    """Spare Megatron the compilation of its dataset helpers, on any device. Imports megatron.

    Megatron runs `make` for them at every start and exits if that fails; its wheel has them
    compiled, and no Makefile.
    """
    from megatron.core.datasets import utils

    compile_helpers = utils.compile_helpers

    @functools.wraps(compile_helpers)
    def compile_if_missing() -> None:
        try:
            import megatron.core.datasets.helpers_cpp  # noqa: F401
        except ImportError:
            compile_helpers()

    utils.compile_helpers = compile_if_missing


def allow_odd_widths() -> None:
    """Let Megatron start with an odd feed-forward width, on any device. Imports megatron.

    It warms its fused SwiGLU up on tensors of that width, which it cannot halve; those of a model
    are twice as wide.
    """
    from megatron.training import get_args
    from megatron.training.training import set_jit_fusion_options

    @functools.wraps(set_jit_fusion_options)
    def warm_up_even_widths(tp_size: int | None = None) -> None:
        args = get_args()
        if args.ffn_hidden_size // args.tensor_model_parallel_size % 2 == 0:
            set_jit_fusion_options(tp_size)

    _replace_in_megatron(set_jit_fusion_options, warm_up_even_widths)


def _set(owner: Any, replacements: dict[str, Any]) -> None:
    for name, replacement in replacements.items():
        setattr(owner, name, replacement)


def _constant(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: value


# Functions that make a tensor where `device` says.
_FACTORIES = """
    arange as_tensor asarray empty empty_like empty_strided eye full full_like linspace logspace
    normal ones ones_like rand rand_like randint randint_like randn randn_like randperm range
    scalar_tensor tensor tril_indices triu_indices zeros zeros_like
""".split()
_NEW_METHODS = "new_empty new_empty_strided new_full new_ones new_tensor new_zeros".split()


def _names_cuda(device: Any) -> bool:
    """Whether an argument means a CUDA device: "cuda", "cuda:0", torch.device("cuda") or 0."""
    if isinstance(device, torch.device):
        return device.type == "cuda"
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, int) and not isinstance(device, bool)


def _on_cpu(function: Callable[..., Any], keyword: str = "device") -> Callable[..., Any]:
    """`function` that reads CUDA in its `keyword` argument as the CPU and does not pin memory."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            if _names_cuda(kwargs.get(keyword)):
                kwargs[keyword] = "cpu"
            kwargs.pop("pin_memory", None)
        return function(*args, **kwargs)

    return wrapper


def _redirect_devices() -> None:
    """Tensors asked for on CUDA are made on the CPU.

    The functions are replaced, not overridden by a TorchFunctionMode: that costs every operation
    about 2 us and does not reach other threads (checkpoint writers, data loaders).
    """
    _set(torch, {name: _on_cpu(getattr(torch, name)) for name in _FACTORIES})
    _set(torch.Tensor, {name: _on_cpu(getattr(torch.Tensor, name)) for name in _NEW_METHODS})
    torch.load = _on_cpu(torch.load, "map_location")
    tensor_to, tensor_type = torch.Tensor.to, torch.Tensor.type

    @functools.wraps(tensor_to)
    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and _names_cuda(args[0]):
            args = ("cpu", *args[1:])
        elif kwargs and _names_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
        return tensor_to(self, *args, **kwargs)

    @functools.wraps(tensor_type)
    def type_name(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # Megatron's optimizers sort parameters by name of type: "torch.cuda.FloatTensor" etc.
        out = tensor_type(self, *args, **kwargs)
        return out.replace("torch.", "torch.cuda.", 1) if isinstance(out, str) else out

    def itself(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self

    _set(torch.Tensor, {"to": to, "type": type_name, "cuda": itself, "pin_memory": itself})
    _set(torch.Tensor, {"record_stream": _constant(None)})
    _set(torch.nn.Module, {"cuda": itself})


class Stream(torch.cpu.Stream):
    """A `torch.cuda.Stream` whose work is always done: the CPU computes in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def record_event(self, event: "Event | None" = None) -> "Event":  # type: ignore[override]
        """The event, or a new one: what it would wait for is done."""
        return event or Event()

    synchronize = _constant(None)
    query = _constant(True)


class Event(torch.cpu.Event):
    """A `torch.cuda.Event` that has always happened; it measures no time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()


def _memory(*args: Any, **kwargs: Any) -> int:
    """Resident memory of this process in bytes; 0 where /proc does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def _peak_memory(*args: Any, **kwargs: Any) -> int:
    """Peak resident memory of this process in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return max(peak, _memory())  # the kernel keeps the peak less exactly


def _machine_memory(*args: Any, **kwargs: Any) -> tuple[int, int]:
    """Free and total memory of the machine in bytes, as torch.cuda.mem_get_info of a device."""
    free, total = (os.sysconf(f"SC_{kind}_PAGES") for kind in ("AVPHYS", "PHYS"))
    return free * resource.getpagesize(), total * resource.getpagesize()


def _memory_stats(*args: Any, **kwargs: Any) -> dict[str, int]:
    """What torch.cuda.memory_stats counts for a device, for this process; 0 for what is unknown."""
    counts = {"current": _memory(), "peak": _peak_memory()}
    stats = {f"{k}_bytes.all.{c}": counts[c] for k in ("allocated", "reserved") for c in counts}
    return defaultdict(int, stats)


def _stand_in_for_cuda() -> None:
    """`torch.cuda` of a machine with one device, the CPU. `is_available()` stays False."""
    # Megatron refuses tensor and context parallelism without it: it orders CUDA's kernels.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    total = _machine_memory()[1]
    properties = types.SimpleNamespace(name="cpu", major=8, minor=0, total_memory=total)
    answers = {
        "clock_rate": 0,
        "current_device": 0,
        "current_stream": Stream(),
        "default_stream": Stream(),
        "device": contextlib.nullcontext(),
        "device_count": 1,
        "empty_cache": None,
        "get_device_capability": (8, 0),  # --moe-grouped-gemm asks for it; torch then computes
        "get_device_name": "cpu",
        "get_device_properties": properties,
        "ipc_collect": None,
        # Accelerate has torch count devices for this, and the count here is 1.
        "is_available": False,
        "is_current_stream_capturing": False,
        "power_draw": 0,
        "reset_peak_memory_stats": None,
        "set_device": None,
        "set_stream": None,
        "synchronize": None,
        "temperature": 0,
        "utilization": 0,
    }
    memory = {
        "device_memory_used": _memory,
        "max_memory_allocated": _peak_memory,
        "max_memory_reserved": _peak_memory,
        "mem_get_info": _machine_memory,
        "memory_allocated": _memory,
        "memory_reserved": _memory,
        "memory_stats": _memory_stats,
    }
    names = [f"{t}Tensor" for t in "BFloat16 Bool Byte Double Float Half Int Long".split()]
    _set(torch.cuda, {name: _constant(answer) for name, answer in answers.items()})
    # A function of its own for each: torch.compile keeps rules by function.
    _set(torch.cuda, {name: functools.partial(value) for name, value in memory.items()})
    _set(torch.cuda, {"Stream": Stream, "Event": Event, "stream": torch.cpu.StreamContext})
    _set(torch.cuda, {name: getattr(torch, name) for name in names})
    _set(torch.cuda.nvtx, {"range_push": _constant(0), "range_pop": _constant(0)})


def _share_the_generator() -> None:
    """The default generator plays CUDA's too, so Megatron's random states govern CPU kernels.

    Data loaders get another: they would draw their seed from the default one, on some ranks only
    and again when resuming, which on CUDA leaves the device's generator alone.
    """
    random = {
        "get_rng_state": lambda *args, **kwargs: torch.get_rng_state(),
        "set_rng_state": lambda state, *args, **kwargs: torch.set_rng_state(state),
        "initial_seed": lambda: torch.initial_seed(),
        "manual_seed": lambda seed: torch.default_generator.manual_seed(int(seed)),
        # torch.manual_seed() calls it
        "manual_seed_all": lambda seed: torch.default_generator.manual_seed(int(seed)),
    }
    for module in (torch.cuda, torch.cuda.random):
        _set(module, random)

    loaders = functools.cache(lambda: torch.Generator().manual_seed(torch.initial_seed()))
    init = torch.utils.data.DataLoader.__init__

    @functools.wraps(init)
    def loader_init(self: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("generator") is None:
            kwargs["generator"] = loaders()
        kwargs.pop("pin_memory", None)
        init(self, *args, **kwargs)

    _set(torch.utils.data.DataLoader, {"__init__": loader_init})


class _Done:
    """The handle of a collective that has finished."""

    wait = is_completed = is_success = _constant(True)


def _mend_gloo() -> None:
    """What NCCL takes and gloo refuses, of the collectives that Megatron uses."""
    all_gather, all_to_all = dist.all_gather, dist.all_to_all_single

    @functools.wraps(all_gather)
    def uneven_all_gather(tensor_list, tensor, group=None, async_op=False):
        # Ranks may give tensors of different shapes: one broadcast from each rank.
        if len({t.shape for t in tensor_list}) <= 1:
            return all_gather(tensor_list, tensor, group=group, async_op=async_op)
        for source, out in enumerate(tensor_list):
            if source == dist.get_rank(group):
                out.copy_(tensor)
            if out.numel():
                dist.broadcast(out, group=group, group_src=source)
        return _Done() if async_op else None

    @functools.wraps(all_to_all)
    def all_to_all_single(
        output, input, output_split_sizes=None, input_split_sizes=None, group=None, async_op=False
    ):
        # Split sizes may be tensors.
        sizes = output_split_sizes, input_split_sizes
        out_sizes, in_sizes = (s.tolist() if isinstance(s, torch.Tensor) else s for s in sizes)
        return all_to_all(output, input, out_sizes, in_sizes, group=group, async_op=async_op)

    dist.all_gather, dist.all_to_all_single = uneven_all_gather, all_to_all_single


def _no_compile(model: Callable[..., Any] | None = None, **kwargs: Any) -> Any:
    return _no_compile if model is None else model


def _replace_in_megatron(old: types.FunctionType, new: Any) -> None:
    """Put `new` for `old` in every megatron module that has it under its own name."""
    for name, module in list(sys.modules.items()):
        if name.startswith("megatron.") and getattr(module, old.__name__, None) is old:
            setattr(module, old.__name__, new)


def _mend_megatron() -> None:
    """Import Megatron, without torch.compile, and replace what cannot be answered from torch."""
    compile_, torch.compile = torch.compile, _no_compile  # what @jit_fuser decorates stays plain
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(Apex|transformer-engine)")
            import megatron.training.training  # noqa: F401
            from megatron.core import jit
            from megatron.core.tensor_parallel import random
            from megatron.training.initialize import initialize_megatron
    finally:
        torch.compile = compile_
    jit.disable_jit_fuser()

    from helm_megatron.checkpoint import reshard
    from helm_megatron.optim import cpu_adam

    cpu_adam.install()
    reshard.install()
    use_compiled_helpers()
    # pretrain() does not pass on the argument that spares it the assertion of CUDA.
    without_cuda = functools.partial(initialize_megatron, allow_no_cuda=True)
    _replace_in_megatron(initialize_megatron, without_cuda)
    # Upstream's waits for CUDA to be initialized.
    _replace_in_megatron(
        random._set_cuda_rng_state, lambda state, *args, **kwargs: torch.set_rng_state(state)
    )
    # It finds the CPU's random state changed within a fork of CUDA's: here they are one.
    logging.getLogger(random.__name__).addFilter(
        lambda record: "CPU RNG state changed" not in record.getMessage()
    )
