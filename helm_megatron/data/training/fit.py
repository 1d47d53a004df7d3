"""Whether data was made with the tokenizer that a training command names."""

import argparse
from typing import Any

from helm_megatron.data.errors import DataError
from helm_megatron.data.indexed import optimal_dtype, paths_of, read_index
from helm_megatron.data.sidecar import fingerprint, read_sidecar, sidecar_path
from helm_megatron.data.training.blend import prefixes_of

TEXTLESS = ("NullTokenizer", "NullMultimodalTokenizer")


def check_fit(args: argparse.Namespace, tokenizer: Any) -> None:
    """Refuse data that another tokenizer made, by its sidecar; data without one goes unchecked.

    A tokenizer is told by what it makes of a text, so the same vocabulary may be run by another
    library, or lie elsewhere. Of a NullTokenizer only the size is compared.

    Args:
        args: Megatron's.
        tokenizer: the one that Megatron built from them.

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
        stored, wanted = read_index(path).dtype, optimal_dtype(sidecar["tokenizer"]["vocab_size"])
        if stored != wanted:
            raise DataError(
                f"{path}: holds {stored}, not {wanted} as {sidecar_path(prefix)} implies: damaged"
            )
    own = _Own(args, tokenizer)
    for prefix, sidecar in sidecars.items():
        own.check(prefix, sidecar)


class _Own:
    """The tokenizer of the training command."""

    def __init__(self, args: argparse.Namespace, tokenizer: Any) -> None:
        self._name = " ".join(filter(None, (args.tokenizer_type, args.tokenizer_model)))
        self._size, self._eod = tokenizer.vocab_size, tokenizer.eod
        textless = args.tokenizer_type in TEXTLESS
        self._fingerprint = None if textless else fingerprint(tokenizer.tokenize)

    def check(self, prefix: str, sidecar: dict[str, Any]) -> None:
        """Raise DataError if a dataset does not fit."""
        theirs = sidecar["tokenizer"]
        made = f"{prefix}: made with {theirs['type']} {theirs['model']}"
        mine = f"this run's {self._name}"
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
        if ends and theirs.get("eod") != self._eod:
            raise DataError(
                f"{made}: documents end with token {theirs.get('eod')}, but {mine} has"
                f" {self._eod} for that; {advice}"
            )
