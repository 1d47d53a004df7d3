"""What a run's log tells: losses by iteration, and time; and the file that keeps it."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from helm_megatron.study.errors import StudyError

_STEP = re.compile(r"iteration +(\d+)/ *(\d+) \|.*?elapsed time per iteration \(ms\): ([\d.]+)")
_LOSS = re.compile(r"lm loss: ([\d.E+-]+|nan|inf)", re.IGNORECASE)
_VALID = re.compile(r"validation loss at iteration (\d+)( on (\w+) set)? \| lm loss value: (\S+)")
_BITS = re.compile(r"validation bits per byte at iteration (\d+)( on (\w+) set)? \| (\S+)")
_VOCABULARY = re.compile(r"padded vocab .*\(new size: (\d+)\)")


@dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes:
        loss: validation, in nats a token, after the last iteration.
        bits_per_byte: the same where the tokenizer tells bytes.
        training: losses by iteration, as logged.
        validation: likewise.
        seconds: of all iterations.
        vocabulary: padded.
    """

    command: list[str]
    loss: float
    bits_per_byte: float | None
    training: dict[int, float]
    validation: dict[int, float]
    seconds: float
    vocabulary: int


def of_log(text: str, command: list[str]) -> Record:
    """The record of a run whose log, of all its starts one after the other, this is.

    Raises:
        StudyError: it did not come to its last evaluation, or its loss is no number.
    """
    training: dict[int, float] = {}
    seconds: dict[int, float] = {}
    validation: dict[int, float] = {}
    last = 0
    for match in _STEP.finditer(text):
        iteration, last = int(match[1]), int(match[2])
        line = text[match.start() : text.find("\n", match.start())]
        if loss := _LOSS.search(line):
            training[iteration] = float(loss[1])
        seconds[iteration] = float(match[3]) / 1000
    steps = sorted(seconds)
    # A line is the mean of the iterations since the one before.
    total = sum(
        seconds[step] * (step - before) for step, before in zip(steps, [0, *steps], strict=False)
    )
    final = None
    for match in _VALID.finditer(text):
        if match[3] in (None, "validation"):
            validation[int(match[1])] = float(match[4])
            if match[3] is None or int(match[1]) == last:
                final = (int(match[1]), float(match[4]))
    if final is None or final[0] != last:
        raise StudyError("no validation loss of the last iteration: are there --eval-iters?")
    if not math.isfinite(final[1]):
        raise StudyError(f"the validation loss is {final[1]}")
    bits = {int(m[1]): float(m[4]) for m in _BITS.finditer(text) if m[3] in (None, "validation")}
    return Record(
        command=command,
        loss=final[1],
        bits_per_byte=bits.get(last),
        training=training,
        validation=validation,
        seconds=total,
        vocabulary=max((int(size) for size in _VOCABULARY.findall(text)), default=0),
    )


@dataclass(frozen=True)
class Answers:
    """What a model answered to a question set.

    Attributes:
        right: the part of the questions, by lm-eval's `acc`.
        chance: what guessing gives; None where it is not known.
    """

    right: float
    chance: float | None


def read_scores(path: Path, tasks: Sequence[str]) -> dict[str, Answers] | None:
    """The answers to these question sets that `helm-megatron evaluate` wrote; None if not to all.

    Raises:
        StudyError: the file is damaged.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = {
            score["task"]: Answers(float(score["value"]), score["chance"])
            for score in data["scores"]
            if score["metric"] == "acc"
        }
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StudyError(f"{path}: {error!r}; delete it to ask again") from error
    return {task: found[task] for task in tasks} if set(tasks) <= set(found) else None


def write(record: Record, path: Path) -> None:
    """Write a record; it is there whole or not at all."""
    staged = path.with_name(f".{path.name}.partial")
    with staged.open("w", encoding="utf-8") as file:
        file.write(json.dumps(asdict(record)) + "\n")
        file.flush()
        os.fsync(file.fileno())
    staged.rename(path)


def read(path: Path) -> Record | None:
    """A record that was written; None if there is none.

    Raises:
        StudyError: the file is damaged.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StudyError(f"{path}: {error}; delete it to run it again") from error
    for curve in ("training", "validation"):
        data[curve] = {int(step): loss for step, loss in data[curve].items()}
    return Record(**data)
