"""The model card of an export: README.md and loss.png, filled in from the run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helm_megatron.analysis.losses import TRAIN, VALIDATION, plot, read_curve
from helm_megatron.hf.configuration_helm import HelmConfig

_HEAD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [helm, hyperbolic, lorentz]
---
# {title}

{kind}, made with helm_megatron from `{source}`.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
```

## Model

{model}
"""
_USES = """
## Limits

A language model repeats what its training text holds, wrong statements and prejudices included.
Nothing here was tuned to follow instructions or to be safe.
"""
# Arguments of the run that the card tells, if the checkpoint has them.
_TRAINING = (
    "iteration consumed_train_samples seq_length global_batch_size lr min_lr lr_decay_style "
    "weight_decay optimizer seed"
).split()
_ROWS = 10


def kind_of(config: HelmConfig) -> str:
    """What the paper calls such a model."""
    if config.geometry != "lorentz":
        return "The Euclidean twin of a HELM model"
    if config.n_routed_experts is not None:
        return "A HELM-MiCE model: a hyperbolic mixture of curvature experts (arXiv:2505.24722)"
    attention = ", with latent attention" if config.kv_lora_rank is not None else ""
    return f"A HELM-D model: a hyperbolic language model (arXiv:2505.24722){attention}"


def write_card(
    folder: Path,
    config: HelmConfig,
    source: str,
    parameters: int,
    run: argparse.Namespace | None = None,
    tensorboard: Path | None = None,
    evaluation: Path | None = None,
) -> None:
    """Write README.md into a folder, and loss.png if there are losses.

    `run` holds the arguments of the training run, `tensorboard` is the folder of its logs,
    `evaluation` a results file of lm-eval.

    Raises:
        ValueError: `evaluation` is no such file; the message is one line.
    """
    fields = {"parameters": f"{parameters:,}"} | {
        name: value
        for name, value in config.to_diff_dict().items()
        if value is not None and name not in ("auto_map", "architectures", "transformers_version")
    }
    text = _HEAD.format(
        title=source.rstrip("/").rsplit("/", 1)[-1],
        kind=kind_of(config),
        source=source,
        model=_table(("setting", "value"), [(k, f"`{v}`") for k, v in fields.items()]),
    )
    if run is not None:
        rows = [(name, getattr(run, name)) for name in _TRAINING if hasattr(run, name)]
        text += "\n## Training\n\n" + _table(("argument", "value"), rows)
    text += _losses(folder, tensorboard) + _evaluation(evaluation) + _USES
    (folder / "README.md").write_text(text)


def set_evaluation(folder: Path, results: Path) -> None:
    """Put lm-eval's results into the model card of a folder, in place of those that it has.

    Raises:
        ValueError: there is no card of `write_card`, or no such results; the message is one line.
    """
    path = folder / "README.md"
    text = path.read_text() if path.is_file() else ""
    head, limits, rest = text.partition(_USES)
    if not limits:
        raise ValueError(f"{path} is not a model card of tools/checkpoint/convert.py")
    before = head.split("\n## Evaluation\n")[0]
    written = path.with_name(".README.md.partial")
    written.write_text(before + _evaluation(results) + limits + rest)
    written.replace(path)  # whole or not at all, where this is stopped


def _losses(folder: Path, tensorboard: Path | None) -> str:
    if tensorboard is None or not tensorboard.is_dir():
        return ""
    events = EventAccumulator(str(tensorboard), size_guidance={"scalars": 0}).Reload()
    train, validation = read_curve(events, TRAIN), read_curve(events, VALIDATION)
    if not train and not validation:
        return ""
    plot(train, validation, None, folder / "loss.png")
    shown = validation or train
    step = max(1, -(-len(shown) // _ROWS))
    # The last one is always among them.
    rows = [(i, f"{loss:.4f}") for i, loss in shown[::-1][::step][::-1]]
    kind = "validation" if validation else "training"
    title = f"\n## Loss\n\n![loss curve](loss.png)\n\n{kind.capitalize()}, nats per token:\n\n"
    return title + _table(("iteration", "loss"), rows)


def _evaluation(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        results = json.loads(path.read_text())["results"]
        rows = [
            (task, metric.removesuffix(",none"), f"{value:.4f}")
            for task, metrics in sorted(results.items())
            for metric, value in metrics.items()
            if isinstance(value, float) and "stderr" not in metric
        ]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"--evaluation {path}: not a results file of lm-eval: {error}") from error
    return "\n## Evaluation\n\nBy lm-eval.\n\n" + _table(("task", "metric", "value"), rows)


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
