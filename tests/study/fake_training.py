"""Stands for `pretrain_helm.py`: what it logs, without training. Losses follow from the flags."""

import os
import sys
import time

flags = dict(zip(sys.argv[1::1], sys.argv[2::1], strict=False))
seed, rate = int(flags["--seed"]), float(flags["--lr"])
width = int(flags["--ffn-hidden-size"])
with open(os.environ["FAKE_STARTS"], "a") as starts:
    starts.write(f"{width} {seed} {rate}\n")
if seed == int(os.environ.get("FAKE_FAILS", -1)):
    print("pretrain_helm.py: error: the loss is NaN in iteration 7")
    sys.exit(1)
print(" > padded vocab (size: 31) with 97 dummy tokens (new size: 128)", flush=True)
time.sleep(float(os.environ.get("FAKE_SECONDS", 0)))
final = 4 - 0.01 * width + 0.1 * (seed % 7) + abs(rate - 3e-3) * 100
for step in (10, 20):
    loss = final + 1 / step
    print(
        f" [2026-01-01] iteration {step:8d}/      20 | consumed samples: 9 | elapsed time per "
        f"iteration (ms): 50.0 | learning rate: 1e-3 | lm loss: {loss:.6E} | grad norm: 1.0 |"
    )
    print(f" validation loss at iteration {step} | lm loss value: {loss:.6E} | lm loss PPL: 9 |")
where = "iteration 20 on validation set"
print(f" validation loss at {where} | lm loss value: {final:.6E} | lm loss PPL: 9.0 | ")
print(f" validation bits per byte at {where} | {final / 3:.6E}")
print(" validation loss at iteration 20 on test set | lm loss value: 9.9 | lm loss PPL: 9.0 | ")
