"""Print what each variant of a study costs, as JSON: the file and the size."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from helm_megatron.study import config
from helm_megatron.study.cost import cost_of

study = config.read(Path(sys.argv[1]), sys.argv[2])
flags = {run.variant: study.command_flags(run, 1e-3) for run in study.reports()}
print(json.dumps({name: asdict(cost_of(words, 128)) for name, words in flags.items()}))
