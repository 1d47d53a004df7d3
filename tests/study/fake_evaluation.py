"""Stands for `helm-megatron evaluate`: the scores of a model that is not there."""

import json
import os
import re
import sys
from pathlib import Path

flags = dict(zip(sys.argv[1:], sys.argv[2:], strict=False))
width = {"narrow": 16, "wide": 24}[re.search("/(narrow|wide)/", flags["--load"])[1]]
seed = int(re.search(r"/seed-(\d+)/", flags["--load"])[1])
with open(os.environ["FAKE_STARTS"], "a") as starts:
    starts.write(f"{width} {seed} 0\n")
if seed == int(os.environ.get("FAKE_UNASKED", -1)):
    sys.exit("error: no questions")
output = Path(flags["--output-dir"])
output.mkdir(exist_ok=True)
scores = [
    {
        "task": task,
        "metric": metric,
        "value": (width + seed + (metric == "f1")) / 100,
        "chance": 0.2,
    }
    for task in flags["--tasks"].split(",")
    for metric in ("acc", "f1")
]
(output / "scores.json").write_text(json.dumps({"scores": scores}))
