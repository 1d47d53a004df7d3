"""What is in a dataset: counts, lengths of documents, and samples of its text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helm_megatron.data.encoders import Encoder
from helm_megatron.data.errors import DataError
from helm_megatron.data.indexed import CHUNK, Index, map_tokens, paths_of, read_index

BAR = 50


@dataclass(frozen=True)
class Lengths:
    """How many documents have how many tokens: counts[i] of at least edges[i], below edges[i+1].

    Bins are powers of two: 0, 1, 2-3, 4-7, ...
    """

    edges: np.ndarray
    counts: np.ndarray
    documents: int
    tokens: int
    longest: int


def document_lengths(index: Index) -> Lengths:
    """Count the documents of an index by length, in bounded memory."""
    edges = np.concatenate([[0], 2 ** np.arange(41, dtype=np.int64)])
    counts = np.zeros(edges.size, np.int64)
    tokens = longest = 0
    for start in range(0, index.documents, CHUNK):
        bounds = index.bounds[start : start + CHUNK + 1]
        first = int(bounds[0])
        ends = np.concatenate(
            [[0], np.cumsum(index.lengths[first : int(bounds[-1])], dtype=np.int64)]
        )
        lengths = np.diff(ends[bounds - first])
        counts += np.bincount(np.searchsorted(edges, lengths, "right") - 1, minlength=edges.size)
        tokens += int(lengths.sum())
        longest = max(longest, int(lengths.max()))
    used = int(np.flatnonzero(counts).max(initial=0)) + 1
    return Lengths(edges[: used + 1], counts[:used], index.documents, tokens, longest)


def histogram_text(lengths: Lengths) -> str:
    """Draw the lengths as lines of text."""
    most = max(1, int(lengths.counts.max(initial=0)))
    lines = []
    for low, high, count in zip(lengths.edges, lengths.edges[1:], lengths.counts, strict=False):
        label = f"{low:,}" if high - low == 1 else f"{low:,}-{high - 1:,}"
        lines.append(f"{label:>23} {count:>13,} {'#' * -(-BAR * int(count) // most)}")
    return "\n".join([f"{'tokens':>23} {'documents':>13}", *lines])


def histogram_png(lengths: Lengths, path: Path, title: str) -> None:
    """Draw the lengths as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    places = np.arange(lengths.counts.size)
    axes.bar(places, lengths.counts, width=0.9)
    axes.set_xticks(places, [f"{edge:,}" for edge in lengths.edges[: places.size]], rotation=45)
    axes.set(xlabel="tokens of a document, at least", ylabel="documents", title=title)
    figure.tight_layout()
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        pyplot.close(figure)


def samples(
    prefix: str | Path, index: Index, encoder: Encoder, numbers: Sequence[int], tokens: int
) -> list[tuple[int, list[int], str]]:
    """Return the first tokens of documents: number, ids, and their text."""
    stream = map_tokens(paths_of(prefix)[0], index.dtype)
    found = []
    for number in numbers:
        ids = index.document(stream, number)[:tokens].tolist()
        if max(ids, default=0) >= encoder.vocab_size:
            raise DataError(f"{prefix}: has tokens that this tokenizer does not know")
        found.append((number, ids, encoder.decode(ids)))
    return found


def open_index(prefix: str | Path) -> Index:
    """Read the index of a dataset; DataError where --data-path names none."""
    data, index = paths_of(prefix)
    for path in (data, index):
        if not path.is_file():
            raise DataError(f"{path}: no such file; --data-path takes the path without .bin/.idx")
    return read_index(index)
