"""`helm-megatron doctor`: what is installed here, and whether a model can be trained with it."""

from __future__ import annotations

import argparse
import importlib
import math
import os
import platform as machine
import subprocess
import sys
import tempfile
import warnings
from importlib import metadata

PACKAGES = (
    "helm-megatron torch megatron-core transformer-engine apex flash-attn triton deepspeed "
    "lm-eval transformers numpy"
).split()

# What is faster with it, and the module that has to be importable for it.
FUSED_PATHS = {
    "Transformer Engine (--transformer-impl transformer_engine)": "transformer_engine.pytorch",
    "apex fused optimizers and norms": "amp_C",
    "flash attention": "flash_attn",
    "Triton kernels": "triton",
    "Megatron's compiled data helpers": "megatron.core.datasets.helpers_cpp",
}

# A HELM-MiCE as small as possible, with every kind of layer, run as models of a real size are: in
# bf16, the experts of a rank as one function.
TINY_RUN = """
    --num-layers 2 --hidden-size 32 --ffn-hidden-size 64 --num-attention-heads 4
    --multi-latent-attention --rope-type rope --position-embedding-type rope --kv-lora-rank 16
    --qk-head-dim 8 --qk-pos-emb-head-dim 4 --v-head-dim 8
    --num-experts 2 --moe-layer-freq [0,1] --moe-router-topk 2 --moe-ffn-hidden-size 32
    --moe-token-dispatcher-type alltoall --moe-grouped-gemm --bf16
    --swiglu --normalization RMSNorm --disable-bias-linear
    --untie-embeddings-and-output-weights --hidden-dropout 0 --attention-dropout 0
    --mock-data --tokenizer-type NullTokenizer --vocab-size 127 --num-workers 0 --seq-length 32
    --max-position-embeddings 32 --micro-batch-size 1 --global-batch-size 1 --train-iters 1
    --lr 1e-3 --log-interval 1 --eval-iters 0 --eval-interval 100
""".split()
TRAIN = "from helm_megatron import megatron_patches; megatron_patches.apply(); "
TRAIN += "from helm_megatron.pretrain import main; main()"


def main() -> int:
    """The command line; returns its exit code."""
    parser = argparse.ArgumentParser(
        description="Show versions, GPUs and fused paths, and train one step of a tiny HELM-MiCE "
        "on the GPU, or on the CPU if there is none. Exit code 0 if that worked.",
    )
    parser.add_argument("--timeout", type=float, default=240, help="seconds for the step")
    options = parser.parse_args()
    if not 0 < options.timeout < math.inf:
        parser.error(f"--timeout {options.timeout}: must be a positive number of seconds")
    return run(options)


def run(options: argparse.Namespace) -> int:
    """Print the report; returns 0 if a model can be trained."""
    print(f"python {machine.python_version()} on {machine.platform()}")
    for package in PACKAGES:
        print(f"{package:20} {installed_version(package) or 'not installed'}")
    gpus = gpu_names()
    print(f"{'GPUs':20} {', '.join(gpus) or 'none: trains on the CPU'}")
    for path, module in FUSED_PATHS.items():
        print(f"{path}: {module_state(module)}")
    print("one training step: ", end="", flush=True)
    problem = training_problem(options.timeout)
    print(problem or "works")
    return 1 if problem else 0


def installed_version(package: str) -> str | None:
    """A package's version, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def gpu_names() -> list[str]:
    """Names of the GPUs that torch can use."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def module_state(name: str) -> str:
    """Whether a module can be imported: "on", or "off" and why."""
    try:
        with warnings.catch_warnings(action="ignore"):
            importlib.import_module(name)
    except ModuleNotFoundError:
        return "off, not installed"
    except Exception as error:  # libraries that do not fit this machine raise all kinds
        return f"off: {' '.join(str(error).split())[:200]}"
    return "on"


def training_problem(timeout: float) -> str | None:
    """Train one step in a process of its own; returns what went wrong, or None."""
    command = [sys.executable, "-c", TRAIN, *TINY_RUN]
    # Neither the ranks of a job nor its rendezvous are this process's.
    ours = {name: value for name, value in os.environ.items() if name not in {"RANK", "WORLD_SIZE"}}
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        try:
            code = subprocess.run(
                command, env=ours, stdout=output, stderr=subprocess.STDOUT, timeout=timeout
            ).returncode
        except subprocess.TimeoutExpired:
            return f"did not end within {timeout:g} s"
        output.seek(0)
        text = output.read()
    if code == 0 and "iteration        1/" in text:
        return None
    explained = [line for line in text.splitlines() if "error:" in line]
    return f"failed with exit code {code}: {explained[-1] if explained else text[-2000:]}"
