"""Scores in the columns of the HELM paper's table, beside the rows published there."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from helm_megatron.evaluation.scores import Score

# Column, shots, and the tasks that fill it.
COLUMNS: list[tuple[str, int, tuple[str, ...]]] = [
    ("CommonsenseQA", 0, ("commonsense_qa",)),
    ("HellaSwag", 0, ("hellaswag",)),
    ("OpenBookQA", 0, ("openbookqa", "openbookqa_letters")),
    ("MMLU", 5, ("mmlu",)),
    ("ARC-Challenge", 5, ("arc_challenge",)),
]


@dataclass(frozen=True)
class Published:
    """A row of the paper: accuracies in percent, in the order of `COLUMNS`.

    Attributes:
        millions: of parameters, as the paper names the size.
        average: as printed there.
    """

    name: str
    millions: int
    experts: bool
    scores: tuple[float, ...]
    average: float


# arXiv:2505.24722, from the authors' published pictures. The average that is printed for the 120M
# DeepSeekV3 is not that of its row, 22.9.
PUBLISHED = [
    Published("LLaMA 115M (Euclidean)", 115, False, (20.9, 25.1, 25.4, 23.4, 21.0), 23.2),
    Published("HELM-D 115M", 115, False, (20.3, 25.9, 27.1, 25.6, 21.4), 24.1),
    Published("DeepSeekV3 120M (Euclidean)", 120, True, (19.3, 25.3, 24.0, 23.9, 22.2), 22.2),
    Published("MiCE-Const 120M", 120, True, (20.0, 25.6, 27.0, 23.5, 22.3), 23.7),
    Published("HELM-MiCE 120M", 120, True, (19.7, 25.9, 27.7, 24.4, 23.2), 24.1),
    Published("DeepSeekV3 1B (Euclidean)", 1000, True, (19.5, 26.2, 27.4, 23.6, 22.7), 23.9),
    Published("HELM-MiCE 1B", 1000, True, (19.8, 26.5, 28.4, 25.9, 23.7), 24.9),
]


def comparison(scores: Sequence[Score], folder: Path, name: Path) -> str:
    """The table of the paper with a row of `scores`; empty where they are of other tasks.

    The published rows are those of dense models, or of mixtures of experts, of the size nearest to
    the model's.

    Args:
        folder: the model that was evaluated, a Hugging Face folder.
        name: what the user calls it.
    """
    found = {(score.task, score.shots): score for score in scores if score.metric == "acc"}
    ours = [_value(found, shots, tasks) for _, shots, tasks in COLUMNS]
    if None in ours:
        return ""
    count, experts = _size(folder)
    sizes = {row.millions for row in PUBLISHED if row.experts == experts}
    nearest = min(sizes, key=lambda size: abs(size * 1e6 - count))
    rows = [r for r in PUBLISHED if r.experts == experts and r.millions == nearest]
    values = [100 * value for value in ours if value is not None]
    mean = sum(values) / len(values)
    heads = [f"{column}, {shots} shots" for column, shots, _ in COLUMNS]
    lines = [
        "",
        f"| accuracy in percent | {' | '.join(heads)} | average |",
        "|---|" + "--:|" * (len(COLUMNS) + 1),
        _line(f"{name} ({count / 1e6:,.1f}M parameters)", values, mean),
        *(_line(f"published: {row.name}", row.scores, row.average) for row in rows),
        "",
        "A guesser's average is about 24.0 here. Only the scores of paper-as-released follow the "
        "rule that gave the published ones.",
    ]
    return "\n".join(lines) + "\n"


def _value(
    found: dict[tuple[str, int | None], Score], shots: int, tasks: tuple[str, ...]
) -> float | None:
    for task in tasks:
        for (name, asked), score in found.items():
            # A group (mmlu) has no number of shots of its own.
            if name == task and asked in (shots, None):
                return score.value
    return None


def _line(name: str, values: Sequence[float], average: float) -> str:
    return f"| {name} | {' | '.join(f'{value:.1f}' for value in values)} | {average:.1f} |"


def _size(folder: Path) -> tuple[int, bool]:
    """Number of parameters in a folder's safetensors files, and whether it has experts."""
    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            names = file.keys()
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    experts = ("n_routed_experts", "num_local_experts", "num_experts")
    return count, any(config.get(key) for key in experts)
