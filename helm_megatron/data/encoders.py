"""Tokenizers that give the token ids of Megatron's own, without importing Megatron.

Megatron's wrappers encode one text a call and cost seconds to import; these encode batches and are
cheap to start in every worker.
"""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from helm_megatron.data.errors import DataError

SENTENCEPIECE_TYPES = ("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer")
TOKENIZER_TYPES = (*SENTENCEPIECE_TYPES, "HuggingFaceTokenizer")


class Encoder(Protocol):
    """What preprocessing asks of a tokenizer; `eod` is None where it has no end-of-document id."""

    vocab_size: int
    eod: int | None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text."""
        ...


class SentencePieceEncoder:
    """Megatron's SentencePiece tokenizer types (its three names are one class).

    Its flags --tokenizer-sentencepiece-legacy and -ignore-extra-whitespaces are taken at their
    defaults. The end-of-document id is the model's </s>.
    """

    def __init__(self, model: str) -> None:
        import sentencepiece

        if not Path(model).is_file():
            raise DataError(f"{model}: no such SentencePiece model; see --tokenizer-model")
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=model)
        except (RuntimeError, OSError) as error:
            raise DataError(f"{model}: not a SentencePiece model") from error
        self.vocab_size: int = self._processor.get_piece_size()
        eos = self._processor.eos_id()
        self.eod = eos if eos >= 0 else None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        # Parallelism comes from worker processes, so one thread here.
        return self._processor.encode(list(texts), out_type=int, num_threads=1)


class HuggingFaceEncoder:
    """Megatron's HuggingFaceTokenizer: a local folder or a hub name.

    Special tokens that the tokenizer adds by itself (a BOS, say) are kept, as Megatron does.
    The end-of-document id is that of the EOS token, else of the SEP token. Code that ships with a
    tokenizer is never run.
    """

    def __init__(self, model: str) -> None:
        # One thread a worker; also silences the warning about threads and forks.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        except (OSError, ValueError) as error:
            reason = textwrap.shorten(str(error), 200)
            raise DataError(f"{model}: cannot be loaded as a tokenizer: {reason}") from error
        self.vocab_size = len(self._tokenizer)
        end_token = self._tokenizer.eos_token or self._tokenizer.sep_token
        self.eod = self._tokenizer.convert_tokens_to_ids(end_token) if end_token else None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        options = {"return_attention_mask": False, "return_token_type_ids": False}
        # verbose=False: documents may be longer than the context, they are cut into samples later.
        return self._tokenizer(list(texts), verbose=False, **options).input_ids


def build_encoder(tokenizer_type: str, model: str) -> Encoder:
    """Build the encoder for Megatron's --tokenizer-type and --tokenizer-model.

    Raises:
        DataError: the type is not one of `TOKENIZER_TYPES`, or the model cannot be loaded.
    """
    if tokenizer_type in SENTENCEPIECE_TYPES:
        return SentencePieceEncoder(model)
    if tokenizer_type == "HuggingFaceTokenizer":
        return HuggingFaceEncoder(model)
    known = ", ".join(TOKENIZER_TYPES)
    raise DataError(f"--tokenizer-type {tokenizer_type} is not supported here; use one of {known}")
