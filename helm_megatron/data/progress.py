"""The progress bar of preprocessing."""

import sys
import time

from tqdm import tqdm

from helm_megatron.data.partial import Counts

# Of a line in a file, which some versions of tqdm cut at a terminal's width.
_LOG_WIDTH = 200


class Progress:
    """One line on standard error: share done, documents, MB/s, tokens/s and the time left.

    Args:
        total: bytes of all sources on disk; None if unknown: then no share and no time left.
        interval: documents between updates.
        done: what an earlier run did.
        consumed: how many of the bytes on disk it had read.
    """

    def __init__(self, total: int | None, interval: int, done: Counts, consumed: int) -> None:
        self._interval, self._before = interval, (done.bytes_read, done.tokens)
        self._next, self._start = 0, time.monotonic()
        share = "{percentage:3.0f}%|{bar:20}| " if total else ""
        times = "[{elapsed}<{remaining}]" if total else "[{elapsed}]"
        self._bar = tqdm(
            total=total,
            initial=consumed,
            bar_format=f"{share}{{desc}} {times}",
            mininterval=0,
            ncols=None if sys.stderr.isatty() else _LOG_WIDTH,
        )

    def show(self, counts: Counts, consumed: int, *, last: bool = False) -> None:
        """Update the line, at most every `interval` documents; consumed are bytes on disk."""
        if counts.documents < self._next and not last:
            return
        self._next = counts.documents + self._interval
        seconds = max(time.monotonic() - self._start, 1e-9)
        size, tokens = counts.bytes_read - self._before[0], counts.tokens - self._before[1]
        self._bar.set_description_str(
            f"{counts.documents:,} documents, {counts.tokens:,} tokens,"
            f" {size / seconds / 1e6:.1f} MB/s, {tokens / seconds:,.0f} tokens/s",
            refresh=False,
        )
        if self._bar.total:
            consumed = min(consumed, self._bar.total)
        self._bar.update(consumed - self._bar.n)
        self._bar.refresh()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._bar.clear()
        tqdm.write(line, file=self._bar.fp)

    def close(self) -> None:
        """End the line."""
        self._bar.close()
