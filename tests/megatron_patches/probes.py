"""What torch and Megatron do without the patches; run by itself, before anything is patched.

Prints a JSON object: the name of each patch that is probed, and why it is not needed any more;
null if it still is.
"""

import argparse
import contextlib
import inspect
import io
import json
import multiprocessing
import os
import pickle
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def unless_refused(what: str, function: Callable[[], Any]) -> str | None:
    """What is said if the function does not raise."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            function()
    except Exception:
        return None
    return f"{what} works now"


def first(*reasons: str | None) -> str | None:
    return next((reason for reason in reasons if reason), None)


def _uneven(rank: int, folder: str, refused: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/a", rank=rank, world_size=2)
    with contextlib.suppress(RuntimeError):
        dist.all_gather([torch.zeros(1), torch.zeros(2)], torch.zeros(rank + 1))
        refused.value = 0
    with contextlib.suppress(RuntimeError, TypeError):
        sizes = torch.tensor([1, 1])
        dist.all_to_all_single(torch.zeros(2), torch.zeros(2), sizes, sizes)
        refused.value = 0
    os._exit(0)  # the group may be broken


def gloo() -> str | None:
    fork = multiprocessing.get_context("fork")
    refused = fork.Value("i", 1)
    with tempfile.TemporaryDirectory() as folder:
        ranks = [fork.Process(target=_uneven, args=(rank, folder, refused)) for rank in (0, 1)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
    return None if refused.value else "a collective that gloo refused works now"


def devices() -> str | None:
    return unless_refused("torch.zeros(1, device='cuda')", lambda: torch.zeros(1, device="cuda"))


def cuda() -> str | None:
    return unless_refused("torch.cuda.current_device()", torch.cuda.current_device)


def random_state() -> str | None:
    state = torch.get_rng_state()
    list(torch.utils.data.DataLoader(range(2)))
    unchanged = torch.equal(torch.get_rng_state(), state)
    return first(
        "a DataLoader leaves the default generator alone now" if unchanged else None,
        unless_refused("torch.cuda.get_rng_state()", torch.cuda.get_rng_state),
    )


def no_compile() -> str | None:
    from megatron.core import jit

    return None if jit.jit_fuser is torch.compile else "Megatron compiles nothing when imported"


def initialization() -> str | None:
    from megatron.training import pretrain
    from megatron.training.initialize import initialize_megatron

    passed_on = "allow_no_cuda" in inspect.signature(pretrain).parameters
    return first(
        "pretrain() has the argument allow_no_cuda now" if passed_on else None,
        unless_refused("initialize_megatron() without CUDA", initialize_megatron),
    )


def kernel_order() -> str | None:
    from megatron.training.arguments import validate_args

    asks = 'CUDA_DEVICE_MAX_CONNECTIONS\') == "1"' in inspect.getsource(validate_args)
    return None if asks else "Megatron does not ask for CUDA_DEVICE_MAX_CONNECTIONS now"


def adam() -> str | None:
    from megatron.core import optimizer

    return None if optimizer.USING_PYTORCH_OPTIMIZER else "Megatron found another Adam than torch's"


def compiled_helpers() -> str | None:
    from megatron.core import datasets

    there = Path(datasets.__file__).with_name("Makefile").exists()
    return "Megatron's wheel has a Makefile of its helpers now" if there else None


def help_texts() -> str | None:
    from megatron.training.arguments import add_megatron_arguments

    parser = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    return unless_refused("the help of Megatron's parser", parser.format_help)


def yarn_fields() -> str | None:
    from megatron.training.argument_utils import _apply_yarn_config_from_args

    config = types.SimpleNamespace(beta_fast=None)
    args = argparse.Namespace(
        position_embedding_type="rope", multi_latent_attention=True, yarn_beta_fast=3.0
    )
    _apply_yarn_config_from_args(config, args)
    return None if config.beta_fast is None else "latent attention gets YaRN's flags now"


def optimizer_groups() -> str | None:
    from megatron.core.optimizer.optimizer import ChainedOptimizer

    part = types.SimpleNamespace(load_state_dict=lambda state: None, param_groups=[])
    chain = types.SimpleNamespace(chained_optimizers=[part, part], _synchronize_steps=lambda: None)
    return unless_refused(
        "loading one optimizer's state into two",
        lambda: ChainedOptimizer.load_state_dict(chain, {"optimizer": {"param_groups": []}}),
    )


class _Hostile:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


def checkpoint_index() -> str | None:
    from torch.distributed.checkpoint import filesystem

    uses = inspect.getsource(filesystem).count("pickle.load(")
    if uses != 1:
        return f"torch.distributed.checkpoint.filesystem unpickles in {uses} places"
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "made")
        Path(folder, ".metadata").write_bytes(pickle.dumps(_Hostile(made)))
        with contextlib.suppress(Exception):
            filesystem.FileSystemReader(folder).read_metadata()
        return None if made.exists() else "FileSystemReader runs no code of an index now"


# Those before megatron is imported first.
WITHOUT_CUDA = {
    "cpu.gloo": gloo,
    "cpu.devices": devices,
    "cpu.cuda": cuda,
    "cpu.random_state": random_state,
    "cpu.no_compile": no_compile,
    "cpu.initialization": initialization,
}
EVERYWHERE = {
    "compiled_helpers": compiled_helpers,
    "help_texts": help_texts,
    "kernel_order": kernel_order,
    "yarn_fields": yarn_fields,
    "optimizer_groups": optimizer_groups,
    "adam": adam,
    "checkpoint_index": checkpoint_index,
}

if __name__ == "__main__":
    probes = EVERYWHERE if torch.cuda.is_available() else WITHOUT_CUDA | EVERYWHERE
    print(json.dumps({name: probe() for name, probe in probes.items()}))
