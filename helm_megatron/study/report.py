"""What a study found: learning rates, means and differences, as Markdown, JSON and a figure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from helm_megatron.study.config import Study, Variant
from helm_megatron.study.cost import Cost
from helm_megatron.study.queue import Job
from helm_megatron.study.records import Answers, Record
from helm_megatron.study.statistics import Mean, Paired, mean, paired

Records = Mapping[tuple[str, int], Record]
AllAnswers = Mapping[tuple[str, int], Mapping[str, Answers]]


@dataclass(frozen=True)
class Selection:
    """The learning rate of a variant; None where no rate has a loss for every selection seed.

    Attributes:
        losses: mean validation loss by rate, of the rates that do.
        at_edge: whether a better rate may lie beyond those that were tried.
    """

    rate: float | None
    losses: dict[float, float]
    at_edge: bool


@dataclass(frozen=True)
class Answered:
    """What a variant's models answered to a question set: the part that is right."""

    right: Mean
    chance: float | None
    difference: Paired | None


@dataclass(frozen=True)
class Row:
    """A variant in the table; its loss and cost are means over the seeds."""

    variant: str
    baseline: str
    selection: Selection
    loss: Mean
    bits_per_byte: Mean | None
    difference: Paired | None
    cost: Cost
    seconds: float
    answered: dict[str, Answered]


def select(study: Study, jobs: Sequence[Job]) -> dict[str, Selection]:
    """The learning rate with the lowest mean loss, for each variant."""
    rates = study.learning_rates
    if len(rates) == 1:
        return {v.name: Selection(rates[0], {}, False) for v in study.variants}
    found: dict[str, dict[float, list[float]]] = {v.name: {} for v in study.variants}
    for job in jobs:
        if job.record is not None and job.run.learning_rate is not None:
            found[job.run.variant].setdefault(job.run.learning_rate, []).append(job.record.loss)
    result = {}
    for name, by_rate in found.items():
        whole = {
            rate: float(np.mean(by_rate[rate]))
            for rate in sorted(rates)
            if len(by_rate.get(rate, [])) == len(study.selection_seeds)
        }
        best = min(whole, key=lambda rate: whole[rate]) if whole else None
        result[name] = Selection(best, whole, best in (min(rates), max(rates)))
    return result


def rows(
    study: Study,
    selections: Mapping[str, Selection],
    records: Records,
    costs: Mapping[str, Cost],
    answers: AllAnswers,
) -> list[Row]:
    """The table's rows; a variant without a finished run has none."""
    losses = {key: record.loss for key, record in records.items()}
    result = []
    for variant in study.variants:
        own = [records[key] for seed in study.seeds if (key := (variant.name, seed)) in records]
        if not own:
            continue
        bits = [record.bits_per_byte for record in own if record.bits_per_byte is not None]
        result.append(
            Row(
                variant=variant.name,
                baseline=variant.baseline,
                selection=selections[variant.name],
                loss=mean([record.loss for record in own]),
                bits_per_byte=mean(bits) if len(bits) == len(own) else None,
                difference=_difference(study, variant, losses),
                cost=costs[variant.name],
                seconds=float(np.mean([record.seconds for record in own])),
                answered=_answered(study, variant, answers),
            )
        )
    return result


def _answered(study: Study, variant: Variant, answers: AllAnswers) -> dict[str, Answered]:
    """By question set; none where no model of the variant was asked."""
    own = [answers[key] for seed in study.seeds if (key := (variant.name, seed)) in answers]
    result = {}
    for task in study.tasks if own else ():
        right = {key: found[task].right for key, found in answers.items()}
        difference = _difference(study, variant, right)
        result[task] = Answered(mean([a[task].right for a in own]), own[0][task].chance, difference)
    return result


def _difference(
    study: Study, variant: Variant, values: Mapping[tuple[str, int], float]
) -> Paired | None:
    """Seed by seed, of the seeds that both have."""
    if variant.name == variant.baseline:
        return None
    keys = [((variant.name, seed), (variant.baseline, seed)) for seed in study.seeds]
    both = [(values[a], values[b]) for a, b in keys if a in values and b in values]
    return paired(*zip(*both, strict=True)) if both else None


def markdown(study: Study, table: Sequence[Row], failed: Sequence[str]) -> str:
    """The table, what its columns mean, and the runs that failed."""
    heads = [
        *("variant", "learning rate", "runs", "validation loss", "95% interval", "bits per byte"),
        *("baseline", "difference", "95% interval", "p", "detectable"),
        *("parameters", "training FLOPs", "wall time, s"),
    ]
    lines = [f"# {study.name}, {study.size}", "", f"| {' | '.join(heads)} |"]
    lines.append("|---|" + "--:|" * 5 + "---|" + "--:|" * (len(heads) - 7))
    for row in table:
        rate = "?" if row.selection.rate is None else f"{row.selection.rate:g}"
        cells = [
            *(row.variant, rate + "*" * row.selection.at_edge, str(row.loss.runs)),
            *(f"{row.loss.value:.4f}", _interval(row.loss, "")),
            "" if row.bits_per_byte is None else f"{row.bits_per_byte.value:.4f}",
            *_paired_cells(row.baseline, row.difference),
            *(f"{row.cost.parameters:,}", f"{row.cost.flops:.3g}", f"{row.seconds:.1f}"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    seeds, chosen = len(study.seeds), len(study.selection_seeds)
    lines += [
        "",
        f"Validation loss after the last iteration, in nats a token, over {seeds} seeds; intervals "
        "by Student's distribution. Difference: to the baseline, paired by seed (same order of "
        "data, same initial weights where shapes agree), with the p-value of Student's paired "
        "test. Detectable: the difference that a study of so many seeds and this spread finds 4 "
        "times in 5.",
    ]
    if len(study.learning_rates) > 1:
        lines.append(
            f"Each learning rate is the best of {', '.join(f'{r:g}' for r in study.learning_rates)}"
            f" on {chosen} other seed{'s' * (chosen > 1)}; * the first or last of them, beyond "
            "which a better one may lie."
        )
    lines += _questions(study, table) if study.tasks else []
    lines += ["", "Failed runs, which are in no number above:"] * bool(failed)
    lines += [f"- {reason}" for reason in failed]
    return "\n".join(lines) + "\n"


def _questions(study: Study, table: Sequence[Row]) -> list[str]:
    """The answers to the question sets, as a second table."""
    heads = [
        *("variant", "questions", "runs", "right", "95% interval", "guessing"),
        *("baseline", "difference", "95% interval", "p", "detectable"),
    ]
    lines = ["", f"| {' | '.join(heads)} |", "|---|---|" + "--:|" * 4 + "---|" + "--:|" * 4]
    for task in study.tasks:
        for row in table:
            if task not in row.answered:
                continue
            found = row.answered[task]
            chance = "" if found.chance is None else f"{found.chance:.4f}"
            cells = [row.variant, task, str(found.right.runs), f"{found.right.value:.4f}"]
            cells += [_interval(found.right, ""), chance]
            cells += _paired_cells(row.baseline, found.difference)
            lines.append(f"| {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "Right: lm-eval's acc of the trained models, the mean over seeds. Its interval is that of "
        "the training's chance alone: all models are asked the same questions.",
    ]


def _paired_cells(baseline: str, found: Paired | None) -> list[str]:
    if found is None:
        return ["", "", "", "", ""]
    p_value = "" if found.p_value is None else f"{found.p_value:.2g}"
    detectable = "" if found.detectable is None else f"{found.detectable:.4f}"
    both = _interval(found.mean, "+")
    return [baseline, f"{found.mean.value:+.4f}", both, p_value, detectable]


def _interval(found: Mean, sign: str) -> str:
    if found.low is None or found.high is None:
        return ""
    return f"{found.low:{sign}.4f} to {found.high:{sign}.4f}"


def as_json(study: Study, table: Sequence[Row], failed: Sequence[str]) -> str:
    """The same for programs; what is no number (an infinite loss) is null."""
    content: dict[str, Any] = {
        "study": study.name,
        "size": study.size,
        "seeds": study.seeds,
        "rows": [asdict(row) for row in table],
        "failed": list(failed),
    }
    return json.dumps(_finite(content), indent=2) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def draw(study: Study, records: Records, path: Path) -> None:
    """Write a PNG of the losses by iteration: means over the seeds, with 95% bands."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    for axes, curve in zip(panels, ("training", "validation"), strict=True):
        for index, variant in enumerate(study.variants):
            own = [
                getattr(records[key], curve)
                for seed in study.seeds
                if (key := (variant.name, seed)) in records
            ]
            steps = sorted(set.intersection(*(set(each) for each in own))) if own else []
            means = [mean([each[step] for each in own]) for step in steps]
            values = [found.value for found in means]
            axes.plot(steps, values, label=variant.name, color=f"C{index}")
            low = [found.value if found.low is None else found.low for found in means]
            high = [found.value if found.high is None else found.high for found in means]
            axes.fill_between(steps, low, high, color=f"C{index}", alpha=0.2)
        axes.set(xlabel="iteration", ylabel=f"{curve} loss, nats a token")
    panels[1].legend()
    figure.suptitle(f"{study.name}, {study.size}: means over seeds, 95% bands")
    figure.savefig(path, format="png", dpi=120)
    plt.close(figure)
