"""Megatron's log on standard input, as the few lines of it that a person reads.

    ... pretrain_helm.py ... 2>&1 | tee train.log | python examples/quickstart_log.py

Lines that it does not know are left out: they are in the log file.
"""

import re
import signal
import sys
from collections.abc import Iterable, Iterator

# The ranks write at the same time, so what is sought may stand in the middle of a line.
ITERATION = re.compile(r"iteration +(\d+)/ *(\d+) \|")
MILLISECONDS = re.compile(r"elapsed time per iteration \(ms\): ([\d.]+)")
LOSS = re.compile(r"\| lm loss: (\S+)")
LOST = re.compile(r"number of (skipped|nan) iterations: +([1-9]\d*)")
VALIDATION = re.compile(r"validation loss at iteration (\d+).*?\| lm loss value: (\S+)")
GEOMETRY = re.compile(r"helm at iteration (\d+): (.*)")
RANGE = re.compile(r"([\w-]+) ([^ .]+(?:\.[^ .]+)?)\.\.(\S+)")
MESSAGES = (
    (re.compile(r"successfully loaded checkpoint .* at iteration (\d+)"), "goes on from {}"),
    (re.compile(r"successfully saved checkpoint from iteration +(\d+)"), "checkpoint of {} saved"),
    (re.compile(r"exiting program at iteration (\d+)"), "stopped at {}"),
)
# Of the kinds in a line on the geometry, those to show, every so many iterations.
KINDS = ("curvature", "expert-load", "attention-temperature")
EVERY = 100


def readable(lines: Iterable[str]) -> Iterator[str]:
    """Yield what to print of Megatron's lines, without newlines, as soon as it is known."""
    first = True
    for line in lines:
        if found := ITERATION.search(line):
            yield _progress(line, int(found[1]), int(found[2]), first)
            first = False
        elif found := VALIDATION.search(line):
            yield f"  validation loss at iteration {found[1]}: {_number(found[2])}"
        elif found := GEOMETRY.search(line):
            if int(found[1]) % EVERY == 0:
                yield f"  {_geometry(found[2])}"
        else:
            for pattern, text in MESSAGES:
                if found := pattern.search(line):
                    yield f"  {text.format(f'iteration {found[1]}')}"


def _progress(line: str, iteration: int, total: int, first: bool) -> str:
    loss, time = LOSS.search(line), MILLISECONDS.search(line)
    parts = [f"iteration {iteration:{len(str(total))}}/{total}"]
    parts.append(f"loss {_number(loss[1]) if loss else 'unknown'}")
    if time:
        parts.append(f"{float(time[1]):.0f} ms per iteration")
        if not first:  # which is slower than those that follow
            minutes, seconds = divmod(round((total - iteration) * float(time[1]) / 1000), 60)
            parts.append(f"{minutes}:{seconds:02} left")
    parts += [f"{count} {kind}" for kind, count in LOST.findall(line)]
    return "  " + " | ".join(parts)


def _geometry(text: str) -> str:
    ranges = {kind: (low, high) for kind, low, high in RANGE.findall(text)}
    shown = [(kind, *ranges[kind]) for kind in KINDS if kind in ranges]
    return ", ".join(
        f"{kind.replace('-', ' ')} {float(low):.2f} to {float(high):.2f}"
        for kind, low, high in shown
    )


def _number(text: str) -> str:
    return f"{float(text):.3f}"


def main() -> None:
    """Print them line by line, until the training ends; an interrupt is for the training."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    for line in readable(sys.stdin):
        print(line, flush=True)


if __name__ == "__main__":
    main()
