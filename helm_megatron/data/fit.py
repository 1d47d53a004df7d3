"""Whether data was made with the tokenizer that a training command names."""

import argparse
import contextlib
import copy
import io
from pathlib import Path
from typing import Any

from helm_megatron.data.blend import prefixes_of
from helm_megatron.data.errors import DataError
from helm_megatron.data.indexed import paths_of
from helm_megatron.data.sidecar import fingerprint, read_sidecar, sidecar_path

TEXTLESS = ("NullTokenizer", "NullMultimodalTokenizer")


def check_fit(args: argparse.Namespace) -> None:
    """Refuse data that another tokenizer made, by its sidecar; data without one goes unchecked.

    A tokenizer is told by what it makes of a text, so the same vocabulary may be run by another
    library, or lie elsewhere. Of a NullTokenizer only the size is compared.

    Args:
        args: Megatron's, validated.

    Raises:
        DataError: naming both tokenizers.
    """
    if args.mock_data:
        return
    found = {prefix: read_sidecar(prefix) for prefix in prefixes_of(args)}
    sidecars = {prefix: sidecar for prefix, sidecar in found.items() if sidecar}
    for prefix, sidecar in sidecars.items():
        for path, kind in zip(paths_of(prefix), ("bin", "idx"), strict=True):
            if path.stat().st_size != sidecar["files"][kind].get("bytes"):
                raise DataError(
                    f"{path}: is not the file that {sidecar_path(prefix)} describes;"
                    " tools/inspect_data.py says more"
                )
    if sidecars:
        own = _Own(args)
        for prefix, sidecar in sidecars.items():
            own.check(prefix, sidecar)


class _Own:
    """The tokenizer of the training command."""

    def __init__(self, args: argparse.Namespace) -> None:
        from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer

        self._type, self._model = args.tokenizer_type, args.tokenizer_model
        with contextlib.redirect_stdout(io.StringIO()):  # training says it again
            tokenizer: Any = build_tokenizer(copy.copy(args))
        self._size = tokenizer.vocab_size
        self._eod = tokenizer.eod
        self._fingerprint = None if self._type in TEXTLESS else fingerprint(tokenizer.tokenize)

    def check(self, prefix: str, sidecar: dict[str, Any]) -> None:
        """Raise DataError if a dataset does not fit."""
        theirs = sidecar["tokenizer"]
        made = f"{prefix}: made with {theirs['type']} {Path(theirs['model'])}"
        mine = f"this run's {' '.join(filter(None, (self._type, self._model)))}"
        advice = "pass the data's tokenizer, or preprocess the text with the run's"
        if theirs["vocab_size"] > self._size:
            raise DataError(
                f"{made} of {theirs['vocab_size']:,} tokens, more than the {self._size:,} of"
                f" {mine}; {advice}"
            )
        if self._fingerprint is None:
            return
        if theirs["fingerprint"] != self._fingerprint:
            raise DataError(f"{made}, which is another tokenizer than {mine}; {advice}")
        ends = sidecar.get("options", {}).get("append_eod")
        if ends and theirs["eod"] != self._eod:
            raise DataError(
                f"{made}: documents end with token {theirs['eod']}, but {mine} has"
                f" {self._eod} for that; {advice}"
            )
