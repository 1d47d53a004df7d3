"""Run `pretrain_helm.py` as a user does, in processes of its own."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tests import forked

ROOT = Path(__file__).parents[2]

DENSE = """
    --num-layers 2 --hidden-size 32 --ffn-hidden-size 64 --num-attention-heads 4
    --seq-length 32 --max-position-embeddings 32 --swiglu --normalization RMSNorm
    --disable-bias-linear --position-embedding-type rope --untie-embeddings-and-output-weights
    --mock-data --tokenizer-type NullTokenizer --vocab-size 127 --num-workers 0
    --micro-batch-size 2 --global-batch-size 8 --lr 1e-2 --log-interval 1
    --eval-iters 1 --eval-interval 100 --hidden-dropout 0.1 --attention-dropout 0.1
""".split()
MICE = """
    --multi-latent-attention --rope-type rope --kv-lora-rank 16 --qk-head-dim 8
    --qk-pos-emb-head-dim 4 --v-head-dim 8 --num-experts 4 --moe-router-topk 2
    --moe-ffn-hidden-size 32 --moe-shared-expert-intermediate-size 32 --moe-layer-freq [0,1]
    --moe-token-dispatcher-type alltoall --moe-router-load-balancing-type aux_loss
    --moe-aux-loss-coeff 1e-2 --mice-curvature-init 0.3 2.0
""".split()


@dataclass
class Run:
    """The processes of one run, one per rank, and the output of all of them."""

    ranks: list[subprocess.Popen]
    output: TextIO

    def kill(self):
        """kill -9 every rank and what it has started (checkpoint writers)."""
        for rank in self.ranks:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(rank.pid, signal.SIGKILL)
            rank.wait()

    def end_with_the_first_failure(self):
        """The other ranks would wait for one that failed until gloo's own half hour is over."""
        while any(rank.poll() is None for rank in self.ranks):
            if any(rank.poll() for rank in self.ranks):
                time.sleep(20)
                return self.kill()
            time.sleep(0.5)


def start(*flags, processes=1, base=DENSE):
    """Start `pretrain_helm.py base flags` on ranks of this machine, as torchrun would."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    argv = [sys.executable, str(ROOT / "pretrain_helm.py"), *base, *map(str, flags)]
    read, write = os.pipe()
    ranks = [
        subprocess.Popen(
            argv,
            stdout=write,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,
            env=env | environment,
        )
        for environment in forked.ranks(processes)
    ]
    os.close(write)
    running = Run(ranks, os.fdopen(read, errors="replace"))
    threading.Thread(target=running.end_with_the_first_failure, daemon=True).start()
    return running


def run(*flags, processes=1, base=DENSE):
    """Run to the end; returns the output, and fails the test if the run did."""
    running = start(*flags, processes=processes, base=base)
    output = running.output.read()
    assert [rank.wait() for rank in running.ranks] == [0] * processes, output[-4000:]
    return output


def kill_when(running, text):
    """kill -9 all ranks of a run as soon as its output contains text."""
    output = ""
    for line in running.output:
        output += line
        if text in line:
            return running.kill()
    raise AssertionError(f"the run ended without saying {text!r}:\n{output[-4000:]}")


def losses(output):
    """Training loss by iteration, as logged."""
    pattern = r"iteration +(\d+)/.*? lm loss: ([0-9.E+-]+)"
    return {int(i): float(loss) for i, loss in re.findall(pattern, output)}
