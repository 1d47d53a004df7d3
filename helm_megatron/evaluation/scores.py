"""lm-eval's results as a table: every score beside its standard error and what guessing gives."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from helm_megatron.evaluation.presets import CHANCE


@dataclass(frozen=True)
class Score:
    """One metric of one task.

    Attributes:
        task: lm-eval's name of a task, or of a group with a score of its own (mmlu).
        metric: its name; a filter's name follows after a comma.
        questions: how many were asked.
        stderr: standard error of `value`; None if lm-eval gives none.
        chance: what guessing gives; None where it is not known.
        unigram: what a model of single tokens gives that was fitted to training data; None where
            none was asked.
    """

    task: str
    metric: str
    shots: int | None
    questions: int
    value: float
    stderr: float | None
    chance: float | None
    unigram: float | None = None

    @property
    def deviations(self) -> float | None:
        """How far above chance, in standard deviations of the score of a guesser."""
        if self.chance is None or not self.questions:
            return None
        spread = math.sqrt(self.chance * (1 - self.chance) / self.questions)
        return (self.value - self.chance) / spread


def read_scores(results: dict[str, Any]) -> list[Score]:
    """Return the scores of lm-eval's results file, a group's own instead of its members'."""
    members = results.get("group_subtasks", {})
    inner = {name for names in members.values() for name in names}
    roots = [name for name in results["results"] if name not in inner]
    return [score for root in roots for score in _scores(root, results)]


def with_unigram(scores: list[Score], unigram: list[Score]) -> list[Score]:
    """Return the scores of a model with those of the unigram model on the same tasks."""
    values = {(score.task, score.metric): score.value for score in unigram}
    return [replace(score, unigram=values[score.task, score.metric]) for score in scores]


def _scores(name: str, results: dict[str, Any]) -> Iterator[Score]:
    """Yield the scores of a task or group; a group without any yields its members'."""
    own = results["results"].get(name, {})
    metrics = {
        key: value
        for key, value in own.items()
        if "," in key and "_stderr," not in key and isinstance(value, int | float)
    }
    members = results.get("group_subtasks", {}).get(name, [])
    if not metrics:
        for member in members:
            yield from _scores(member, results)
    for key, value in metrics.items():
        metric, _, name_of_filter = key.partition(",")
        stderr = own.get(f"{metric}_stderr,{name_of_filter}")
        yield Score(
            task=name,
            metric=metric if name_of_filter == "none" else key,
            shots=results.get("n-shot", {}).get(name),
            questions=_questions(name, results),
            value=float(value),
            stderr=float(stderr) if isinstance(stderr, int | float) else None,
            chance=_chance(name, results) if metric in ("acc", "acc_norm") else None,
        )


SD = (
    "sd: standard deviations of the score of a guesser. Within 2 sd the model may as well be"
    " guessing."
)
UNIGRAM = "unigram: a model that knows only how often each token occurs in the training text."


def _questions(name: str, results: dict[str, Any]) -> int:
    counts = results["n-samples"]
    if name in counts:
        return int(counts[name]["effective"])
    members = results.get("group_subtasks", {}).get(name, [])
    return sum(_questions(member, results) for member in members)


def _chance(name: str, results: dict[str, Any]) -> float | None:
    metadata = results.get("configs", {}).get(name, {}).get("metadata") or {}
    return metadata.get("chance", CHANCE.get(name))


def markdown(scores: list[Score]) -> str:
    """Return the scores as a Markdown table, and what its last columns mean."""
    has_unigram = any(score.unigram is not None for score in scores)
    references = ["chance", "unigram"] if has_unigram else ["chance"]
    names = ["questions", "score", "standard error", *references, "above chance"]
    lines = [f"| task | metric | shots | {' | '.join(names)} |", "|---|---|" + "--:|" * 6]
    lines[1] += "--:|" * has_unigram
    for score in scores:
        cells = [
            *(score.task, score.metric, _cell(score.shots, "d"), str(score.questions)),
            *(f"{score.value:.3f}", _cell(score.stderr, ".3f"), _cell(score.chance, ".3f")),
            *([_cell(score.unigram, ".3f")] if has_unigram else []),
            _cell(score.deviations, "+.1f", " sd"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", SD] + [UNIGRAM] * has_unigram
    return "\n".join(lines) + "\n"


def _cell(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"
