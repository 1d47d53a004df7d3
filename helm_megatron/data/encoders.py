"""Tokenizers that give the token ids of Megatron's own, without importing Megatron.

Megatron's wrappers encode one text a call and cost seconds to import; these encode batches and are
cheap to start in every worker.
"""

import base64
import binascii
import hashlib
import os
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from helm_megatron.data.errors import DataError
from helm_megatron.data.words import WordEncoder, has_words

SENTENCEPIECE_TYPES = ("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer")
TOKENIZER_TYPES = (*SENTENCEPIECE_TYPES, "HuggingFaceTokenizer", "TikTokenizer")
# A character that no vocabulary has, as it stands for none: some damage shows only there.
UNKNOWN = "\U0010fffd"


class Encoder(Protocol):
    """What preprocessing asks of a tokenizer.

    eod is None where it has no end-of-document id; sha256 is of what defines the tokenizer.
    """

    vocab_size: int
    eod: int | None
    sha256: str

    def refusal(self, text: str) -> str | None:
        """Return why the tokenizer cannot encode a text; None if it can."""
        ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids; bytes that are no text show as U+FFFD."""
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
            content = Path(model).read_bytes()
            self._words = WordEncoder(self._processor, content) if has_words(content) else None
        except Exception as error:  # damaged data raises anything
            raise DataError(f"{model}: not a SentencePiece model") from error
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.vocab_size: int = self._processor.get_piece_size()
        eos = self._processor.eos_id()
        self.eod = eos if eos >= 0 else None

    def refusal(self, text: str) -> str | None:
        return None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        if self._words:
            return self._words.encode(texts)
        # Parallelism comes from worker processes, so one thread here.
        return self._processor.encode(list(texts), out_type=int, num_threads=1)

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode(list(ids))


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
            self._tokenizer(UNKNOWN)
        except Exception as error:  # tokenizers raises bare exceptions of a damaged file
            reason = textwrap.shorten(str(error), 200) or type(error).__name__
            raise DataError(f"{model}: cannot be loaded as a tokenizer: {reason}") from error
        self.vocab_size = len(self._tokenizer)
        end_token = self._tokenizer.eos_token or self._tokenizer.sep_token
        self.eod = self._tokenizer.convert_tokens_to_ids(end_token) if end_token else None
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        rules = backend.to_str() if backend else repr(sorted(self._tokenizer.get_vocab().items()))
        self.sha256 = hashlib.sha256(rules.encode()).hexdigest()

    def refusal(self, text: str) -> str | None:
        return None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        options = {"return_attention_mask": False, "return_token_type_ids": False}
        # verbose=False: documents may be longer than the context, they are cut into samples later.
        return self._tokenizer(list(texts), verbose=False, **options).input_ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids))


class TikTokenEncoder:
    """Llama-3's tokenizer.model as Meta ships it: a rank file ("base64 rank" a line).

    256 ids after the ranks are special tokens; the second of them, <|end_of_text|>, ends documents.
    Text is never read as a special token. No BOS is put before a document, which Hugging Face's
    version of this tokenizer does; all other ids are the same.
    """

    # Splits text before the merges; by Llama 3's definition.
    PATTERN = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    SPECIAL_TOKENS = 256
    # The regular expressions of tiktoken overflow their stack at runs of about a million.
    SPACES = 200_000

    def __init__(self, model: str) -> None:
        import tiktoken

        ranks, self.sha256 = _read_ranks(model)
        special = {"<|begin_of_text|>": len(ranks), "<|end_of_text|>": len(ranks) + 1}
        special |= {f"<|reserved_{i}|>": len(ranks) + i for i in range(2, self.SPECIAL_TOKENS)}
        self._encoding = tiktoken.Encoding(
            "ranks", pat_str=self.PATTERN, mergeable_ranks=ranks, special_tokens=special
        )
        self.vocab_size = len(ranks) + self.SPECIAL_TOKENS
        self.eod: int | None = special["<|end_of_text|>"]
        self._spaces = re.compile(rf"\s{{{self.SPACES}}}")

    def refusal(self, text: str) -> str | None:
        if len(text) < self.SPACES or not self._spaces.search(text):
            return None
        return f"{self.SPACES:,} white-space characters in a row, more than tiktoken takes"

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._encoding.encode_ordinary(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return self._encoding.decode(list(ids))


def _read_ranks(model: str) -> tuple[dict[bytes, int], str]:
    """Read a rank file; also return its hash."""
    try:
        content = Path(model).read_bytes()
    except OSError as error:
        raise DataError(f"{model}: cannot be read: {error.strerror}") from error
    if model.endswith(".json"):
        raise DataError(f"{model}: Megatron's .json lists are not supported here; pass a rank file")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise DataError(f"{model}:{number}: not a line of a tiktoken rank file") from error
    bytes_there = all(bytes([value]) in ranks for value in range(256))
    if not bytes_there or sorted(ranks.values()) != list(range(len(ranks))):
        raise DataError(f"{model}: ranks are missing; the file was cut off or damaged")
    return ranks, hashlib.sha256(content).hexdigest()


def build_encoder(tokenizer_type: str, model: str) -> Encoder:
    """Build the encoder for Megatron's --tokenizer-type and --tokenizer-model.

    Raises:
        DataError: the type is not one of `TOKENIZER_TYPES`, or the model cannot be loaded.
    """
    if tokenizer_type in SENTENCEPIECE_TYPES:
        return SentencePieceEncoder(model)
    if tokenizer_type == "HuggingFaceTokenizer":
        return HuggingFaceEncoder(model)
    if tokenizer_type == "TikTokenizer":
        return TikTokenEncoder(model)
    known = ", ".join(TOKENIZER_TYPES)
    raise DataError(f"--tokenizer-type {tokenizer_type} is not supported here; use one of {known}")
