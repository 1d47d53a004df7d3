"""Does a deep HELM-MiCE stay finite? The 1B model's 16 layers and 8 experts, narrow, in bf16.

Others saw values that are not finite at step 2,280 of a 1B run. This trains as many layers and
experts for 3,000 steps at ten times the recipe's learning rate, on one process, and prints how far
the loss, the gradient and the largest time coordinate of any layer went in each part of the run.
The training itself stops at a loss or gradient that is not finite; then this exits with code 1.

Further flags are the training's: --data-path and a tokenizer instead of mock data, --lr, ...
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from measure import add_output, report

MODEL = """
--num-layers 16 --hidden-size 64 --ffn-hidden-size 256 --num-attention-heads 4
--multi-latent-attention --rope-type rope --kv-lora-rank 16 --qk-head-dim 8
--qk-pos-emb-head-dim 8 --v-head-dim 8
--num-experts 8 --moe-router-topk 2 --moe-layer-freq [0]+[1]*15 --moe-ffn-hidden-size 128
--moe-shared-expert-intermediate-size 128 --mice-curvature-init 0.1 2.0
--moe-router-score-function softmax --moe-router-pre-softmax --moe-router-dtype fp32
--moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 1e-4
--moe-token-dispatcher-type alltoall
--swiglu --normalization RMSNorm --disable-bias-linear --position-embedding-type rope
--untie-embeddings-and-output-weights --hidden-dropout 0 --attention-dropout 0
--seq-length 64 --max-position-embeddings 64 --micro-batch-size 8 --global-batch-size 8
--lr 4e-3 --min-lr 4e-4 --lr-decay-style cosine --lr-warmup-fraction 0.03
--weight-decay 0.01 --clip-grad 1.0 --bf16 --log-interval 10 --eval-iters 0
""".split()
MOCK = "--mock-data --tokenizer-type NullTokenizer --vocab-size 4095".split()
STEP = re.compile(r"iteration +(\d+)/.*lm loss: (\S+) .*grad norm: (\S+) ")
TIME = re.compile(r" helm at iteration (\d+): .*max-time \S+\.\.(\S+)")


def numbers(pattern: re.Pattern, log: str) -> dict[int, list[float]]:
    """What a log says of each iteration."""
    found = (match.groups() for match in map(pattern.search, log.splitlines()) if match)
    return {int(step): [float(value) for value in values] for step, *values in found}


def table(log: str, steps: int, parts: int) -> list[dict[str, str]]:
    """Rows of the largest values in each part of the run, as logged every tenth step."""
    steps_of, times = numbers(STEP, log), numbers(TIME, log)
    rows = []
    for part in range(parts):
        last = steps * (part + 1) // parts
        seen = [step for step in steps_of if steps * part // parts < step <= last]
        rows.append(
            {
                "steps to": str(last),
                "last loss": f"{steps_of[max(seen)][0]:.4f}",
                "largest loss": f"{max(steps_of[step][0] for step in seen):.4f}",
                "largest gradient norm": f"{max(steps_of[step][1] for step in seen):.3f}",
                # Of the first step none is logged.
                "largest time": f"{max(times[step][0] for step in seen if step in times):.2f}",
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--parts", type=int, default=6, help="rows of the table (default: 6)")
    parser.add_argument("--log", type=Path, required=True, help="the training's log")
    add_output(parser)
    args, further = parser.parse_known_args()
    if args.steps < 10 * args.parts:
        parser.error("--steps must be ten times --parts or more: every tenth step is logged")
    data = [] if "--data-path" in further else MOCK
    flags = [*MODEL, "--train-iters", str(args.steps), *data, *further]
    command = [sys.executable, "-m", "helm_megatron.cli", "pretrain", *flags]
    environment = os.environ | ({"OMP_NUM_THREADS": str(args.threads)} if args.threads else {})
    with args.log.open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    text = args.log.read_text()
    if done.returncode:
        lines = [line for line in text.splitlines() if "error" in line.lower()]
        sys.exit(f"{args.log}: exit code {done.returncode}: {lines[-1] if lines else text[-300:]}")
    report(table(text, args.steps, args.parts), args.output)


if __name__ == "__main__":
    main()
