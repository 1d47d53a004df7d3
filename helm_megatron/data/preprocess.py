"""Tokenizing text into the .bin/.idx files of Megatron's IndexedDataset."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from helm_megatron import __version__
from helm_megatron.data.errors import DataError
from helm_megatron.data.hashes import FileHashes
from helm_megatron.data.indexed import optimal_dtype, paths_of, read_index
from helm_megatron.data.inputs import TextSource
from helm_megatron.data.output import full_disk
from helm_megatron.data.partial import Counts, PartialDataset, publish
from helm_megatron.data.pool import EncodedBatch, TokenizerSpec, encode_parallel
from helm_megatron.data.progress import Progress
from helm_megatron.data.readers import read_batches
from helm_megatron.data.sidecar import (
    describe_file,
    describe_tokenizer,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)

BAD_RECORDS_SHOWN = 10


@dataclass(frozen=True)
class Options:
    """How to preprocess; the fields are flags of tools/preprocess_data.py.

    What changes the output: keys (of JSON, or columns), sample_by (what is a document in plain
    text), partitions (documents are dealt to so many in turn, which are joined in the end, as in
    Megatron's tool; 1 keeps the order of the input). The others do not; resume goes on from the
    last checkpoint, of which there is one every checkpoint_seconds; with overwrite, too, it begins
    anew where that is of other input or options.
    """

    keys: Sequence[str] = ("text",)
    sample_by: str = "line"
    partitions: int = 1
    workers: int = 1
    log_interval: int = 10_000
    max_bad_records: int = 0
    checkpoint_seconds: float = 10
    overwrite: bool = False
    resume: bool = False


def output_prefix_of(output_prefix: Path, key: str) -> Path:
    """Return a key's prefix for --data-path, named as Megatron's own tool names it."""
    return output_prefix.with_name(f"{output_prefix.name}_{key}_document")


def preprocess(
    sources: Sequence[TextSource],
    output_prefix: Path,
    tokenizer: TokenizerSpec,
    options: Options = Options(),
) -> Counts:
    """Write `<output_prefix>_<key>_document.bin`, `.idx` and `.json` for each key.

    The first two are byte for byte those of Megatron's tools/preprocess_data.py. They appear only
    when complete; an unfinished run leaves `<output_prefix>.partial`, which `resume` takes up.
    Document i of every key is the i-th record of the sources, taken in order.

    Raises:
        DataError: input that cannot be read, parsed or tokenized or has no document, or output that
            exists or cannot be written.
    """
    run = _Run(sources, output_prefix, tokenizer, options)
    if run.is_complete():
        print(f"{output_prefix}: complete already", file=sys.stderr)
        return run.counts
    with full_disk(output_prefix.parent, "free some space, then pass --resume"):
        run.open()
        try:
            run.encode()
            run.finish()
        finally:
            run.close()
    return run.counts


def check_keys(keys: Sequence[str]) -> None:
    """Refuse keys that cannot each name the files of a dataset.

    Raises:
        DataError: a key is repeated, or is no name of a file.
    """
    for key in keys:
        if keys.count(key) > 1:
            raise DataError(f"--json-keys {' '.join(keys)}: {key} is there twice")
        if not key.strip():
            raise DataError("--json-keys: an empty name of a key")
        if "/" in key:
            raise DataError(
                f"--json-keys {key}: a / cannot be in the name of a file; rename the key"
            )


class _Run:
    """One run of `preprocess`."""

    def __init__(
        self,
        sources: Sequence[TextSource],
        output_prefix: Path,
        tokenizer: TokenizerSpec,
        options: Options,
    ) -> None:
        check_keys(options.keys)
        encoder = tokenizer.build()
        self._sources, self._tokenizer, self._options = sources, tokenizer, options
        self._prefixes = [output_prefix_of(output_prefix, key) for key in options.keys]
        self._dtype = optimal_dtype(encoder.vocab_size)
        self._identity = describe_tokenizer(encoder, tokenizer.type, tokenizer.model)
        self._changing = {
            "append_eod": tokenizer.append_eod,
            "keys": list(options.keys),
            "sample_by": options.sample_by,
            "partitions": options.partitions,
        }
        making = {
            "input": [asdict(source) for source in sources],
            "tokenizer": [self._identity["sha256"], self._identity["fingerprint"]],
            "options": self._changing,
        }
        self._made_from = hashlib.sha256(json.dumps(making).encode()).hexdigest()
        folder = output_prefix.with_name(f"{output_prefix.name}.partial")
        self._partial = PartialDataset(folder, making, len(options.keys), options.partitions)

    @property
    def counts(self) -> Counts:
        """What was done so far, by earlier runs too."""
        return self._partial.state.counts

    def _outputs(self) -> list[Path]:
        return [path for p in self._prefixes for path in (*paths_of(p), sidecar_path(p))]

    def is_complete(self) -> bool:
        """Whether --resume finds all done, from the same input with the same options."""
        if not self._options.resume or self._partial.journal_path.exists():
            return False
        if not all(path.exists() for path in self._outputs()):
            return False
        sidecars = [read_sidecar(prefix) or {} for prefix in self._prefixes]
        complete = all(sidecar.get("made_from") == self._made_from for sidecar in sidecars)
        if complete:
            self._partial.state.counts = Counts(**sidecars[0]["run"])
        return complete

    def open(self) -> None:
        """Take up the partial dataset or begin one; what is complete stays until the end."""
        unfinished = self._partial.journal_path.exists()
        resume = self._options.resume and unfinished
        if not resume and not self._options.overwrite:
            for path in self._outputs():
                if path.exists():
                    raise DataError(f"{path} exists; pass --overwrite to replace it")
            if unfinished:
                raise DataError(
                    f"{self._partial.folder}: an unfinished run; pass --resume to go on with it, or"
                    " --overwrite to begin anew"
                )
        self._partial.open(resume, self._options.overwrite)
        self._hashes = FileHashes(self._partial.folder / "sources")

    def encode(self) -> None:
        """Tokenize what is left of the sources."""
        options, state = self._options, self._partial.state
        if state.done:
            return
        sizes = [source.size for source in self._sources]
        total = None if None in sizes else sum(size or 0 for size in sizes)
        progress = Progress(total, options.log_interval, state.counts, state.consumed)
        batches = read_batches(self._sources, options.keys, options.sample_by, state.position)
        saved = monotonic()
        try:
            for batch in encode_parallel(batches, self._tokenizer, options.keys, options.workers):
                self._report(batch, progress)
                self._add(batch)
                progress.show(state.counts, state.consumed)
                if monotonic() - saved >= options.checkpoint_seconds:
                    self._partial.checkpoint()
                    saved = monotonic()
            progress.show(state.counts, state.consumed, last=True)
        finally:
            progress.close()
        if not state.counts.documents:
            names = ", ".join(source.path for source in self._sources[:3])
            raise DataError(f"{names}: no documents found")
        state.done = True
        self._partial.checkpoint()

    def _report(self, batch: EncodedBatch, progress: Progress) -> None:
        """Count the bad records; name the first of them, and stop at too many."""
        counts, allowed = self.counts, self._options.max_bad_records
        for line, kept in [(line, False) for line in batch.bad] + [(e, True) for e in batch.empty]:
            if counts.bad + counts.empty == allowed:
                more = f"more than the {allowed:,} allowed; " if allowed else ""
                raise DataError(f"{line}; {more}--max-bad-records N allows N bad records")
            counts.empty, counts.bad = counts.empty + kept, counts.bad + (not kept)
            if counts.bad + counts.empty <= BAD_RECORDS_SHOWN:
                progress.say(f"warning: {line}; {'kept empty' if kept else 'left out'}")

    def _add(self, batch: EncodedBatch) -> None:
        state = self._partial.state
        for key, column in enumerate(batch.columns):
            self._partial.add(key, column.tokens, column.lengths, state.counts.documents)
            state.counts.tokens += column.tokens.size
        state.counts.documents += batch.columns[0].lengths.size
        state.counts.bytes_read += batch.size
        earlier = self._sources[: batch.end.source]
        state.consumed = sum(source.size or 0 for source in earlier) + batch.consumed
        state.position = batch.end
        self._hashes.add(self._sources[batch.end.source])

    def finish(self) -> None:
        """Make the indices and sidecars, and give all files their names."""
        sources = self._hashes.all(self._sources)
        staged = []
        for key, prefix in enumerate(self._prefixes):
            paths = (
                self._partial.folder / f"{key}.{suffix}" for suffix in ("0.bin", "json", "idx")
            )
            data, sidecar, index = paths
            if data.exists():  # else an earlier run was stopped while it gave names
                self._partial.assemble(key, self._dtype)
                write_sidecar(sidecar, self._sidecar(key, data, index, sources))
            targets = [Path(f"{prefix}{suffix}") for suffix in (".bin", ".json", ".idx")]
            staged.append(list(zip((data, sidecar, index), targets, strict=True)))
        # The indices last: a dataset without one does not look whole.
        publish([moves[i] for i in range(3) for moves in staged])
        self._partial.discard()

    def _sidecar(
        self, key: int, data: Path, index: Path, sources: list[dict[str, Any]]
    ) -> dict[str, Any]:
        made = read_index(index)
        tokens = data.stat().st_size // np.dtype(self._dtype).itemsize
        return {
            "tool": f"helm_megatron {__version__} tools/preprocess_data.py",
            "key": self._options.keys[key],
            "tokenizer": self._identity,
            "options": self._changing,
            "counts": {"documents": made.documents, "sequences": made.sequences, "tokens": tokens},
            "run": asdict(self.counts),
            "files": {"bin": describe_file(data), "idx": describe_file(index)},
            "sources": sources,
            "made_from": self._made_from,
        }

    def close(self) -> None:
        """Let other runs in; leave nothing where nothing can be resumed."""
        self._hashes.close()
        if self._partial.folder.exists() and not self._partial.state.sizes:
            self._partial.discard()
        self._partial.close()
