"""What the scores of an evaluation say, in a sentence each: `quickstart_scores.py scores.json`."""

import json
import sys
from pathlib import Path
from typing import Any

from helm_megatron.evaluation.scores import Score

CLEAR = 2  # standard deviations


def sentence(score: Score) -> str:
    """Return a score of a task with answers to choose from, beside chance and the unigram model."""
    assert score.chance is not None and score.unigram is not None and score.deviations is not None
    numbers = (
        f"{score.task} ({score.metric}): {score.value:.3f} are right; guessing gives"
        f" {score.chance:.3f}, the unigram model {score.unigram:.3f}."
    )
    if score.deviations < CLEAR:
        return f"{numbers} That is not clearly above guessing ({score.deviations:+.1f} sd)."
    above = f"That is {score.deviations:.1f} sd above guessing"
    if score.value - score.unigram < CLEAR * (score.stderr or 0):
        return f"{numbers} {above}, but not clearly above the unigram model."
    return f"{numbers} {above}, and clearly above the unigram model."


def main() -> None:
    """Print a sentence for each score."""
    summary: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for fields in summary["scores"]:
        print(sentence(Score(**fields)))


if __name__ == "__main__":
    main()
