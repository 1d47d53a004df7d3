"""Means, their intervals, and paired differences of a few runs; all by scipy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
POWER = 0.8


@dataclass(frozen=True)
class Mean:
    """A mean of values with its interval; None where one value has none."""

    value: float
    low: float | None
    high: float | None
    runs: int


@dataclass(frozen=True)
class Paired:
    """A mean difference of pairs.

    Attributes:
        p_value: of Student's paired test, two-sided: no difference.
        detectable: the difference that so many pairs of this spread find in 80% of studies.
    """

    mean: Mean
    p_value: float | None
    detectable: float | None


def mean(values: Sequence[float]) -> Mean:
    """Of values, with its interval by Student's distribution."""
    runs, value = len(values), float(np.mean(values))
    if runs < 2:
        return Mean(value, None, None, runs)
    error = float(stats.sem(values))
    if not error:
        return Mean(value, value, value, runs)
    low, high = stats.t.interval(CONFIDENCE, runs - 1, loc=value, scale=error)
    return Mean(value, float(low), float(high), runs)


def paired(values: Sequence[float], baseline: Sequence[float]) -> Paired:
    """The difference of values to those of the baseline, pair by pair."""
    differences = np.subtract(values, baseline)
    found = mean(differences.tolist())
    runs, spread = len(differences), float(np.std(differences, ddof=1)) if found.runs > 1 else 0.0
    if runs < 2 or not spread:
        return Paired(found, None, None)
    p_value = float(stats.ttest_rel(values, baseline).pvalue)
    quantiles = stats.t.ppf((1 + CONFIDENCE) / 2, runs - 1) + stats.t.ppf(POWER, runs - 1)
    return Paired(found, p_value, float(quantiles) * spread / math.sqrt(runs))
