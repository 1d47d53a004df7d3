"""The tokenizer of a checkpoint as Hugging Face files; the text that models are compared on."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from helm_megatron.conversion.folder_code import TOKENIZER_CLASS, TOKENIZER_MAP
from helm_megatron.conversion.own_classes import use_own_classes
from helm_megatron.conversion.sentencepiece_tokenizer import (
    from_sentencepiece,
    read_model,
    why_not_fast,
)
from helm_megatron.conversion.tokenizer_probes import probes
from helm_megatron.data.encoders import SENTENCEPIECE_TYPES, build_encoder
from helm_megatron.data.errors import DataError
from helm_megatron.errors import HelmError
from helm_megatron.hf.configuration_helm import HelmConfig
from helm_megatron.hf.tokenization_helm import HelmTokenizer

SAMPLE = (
    "A tree does not fit into a plane. Every level of it has more branches than the one before, "
    "and soon there is no room for them on a circle whose length grows only with its radius. In "
    "hyperbolic space the length of a circle grows exponentially, as the tree does: an animal is a "
    "living thing, a dog is an animal, and a terrier is a dog; each step down has a place of its "
    "own, far from its cousins and near to its parent.\n"
    "Words are like that: a few are general and many are special, 1 of 10 or 1 of 10,000.\n"
)
SAMPLE_TOKENS = 128
# Texts that training's tokenizer and the exported one are compared on.
_PROBES = 500


class TextError(HelmError):
    """A tokenizer that cannot be exported; the message is one line."""


@dataclass(frozen=True)
class Text:
    """A tokenizer by Megatron's flags; no model file for token ids without a text."""

    tokenizer_type: str | None = None
    model: str | None = None

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a tokenizer to export."""
        return self.model is not None

    def vocabulary(self) -> tuple[int, dict[str, int]]:
        """Its size and the special token ids of a config.

        Raises:
            TextError: the tokenizer cannot be loaded.
        """
        encoder = self._encoder()
        tokenizer: Any = self._tokenizer()
        # Documents end with eod; it pads too, where it is masked and the tokenizer has none.
        padding = encoder.eod if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        ids = {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": encoder.eod,
            "pad_token_id": padding,
        }
        return encoder.vocab_size, {name: i for name, i in ids.items() if i is not None}

    def sample(self, config: HelmConfig) -> Tensor:
        """Tokens `[1, s]` of the sample text; its bytes if there is no tokenizer."""
        if self.has_tokenizer:
            [ids] = self._encoder().encode([SAMPLE])
        else:
            ids = [byte % config.vocab_size for byte in SAMPLE.encode()]
        return torch.tensor([ids[: min(SAMPLE_TOKENS, config.max_position_embeddings)]])

    def save(self, folder: Path, longest: int | None = None) -> None:
        """Write the tokenizer's files, so that AutoTokenizer gives the ids of training.

        `longest` is the model's longest text in tokens.

        Raises:
            TextError: it gives others on some text.
        """
        if not self.has_tokenizer:
            return
        tokenizer: Any = self._tokenizer()
        eod = self._encoder().eod
        if eod is not None and tokenizer.eos_token_id != eod:
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(eod)
        if eod is not None and tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if longest is not None:
            tokenizer.model_max_length = longest
        tokenizer.save_pretrained(folder)
        if isinstance(tokenizer, HelmTokenizer):
            _name_code(folder / "tokenizer_config.json")
            print(
                f"{self.model} has {why_not_fast(read_model(str(self.model)))}, which no fast "
                "tokenizer follows: the exported one calls sentencepiece, and is slower",
                file=sys.stderr,
            )
        self._check(folder)

    def _check(self, folder: Path) -> None:
        """Compare the tokenizer in a folder with training's."""
        use_own_classes()
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        # The name of a special token is that token here, and any text there.
        named = {*tokenizer.added_tokens_encoder, *tokenizer.all_special_tokens}
        vocabulary = sorted(set(tokenizer.get_vocab()) - named)
        texts = [SAMPLE, *probes(_PROBES, seed=0, pieces=vocabulary)]
        texts = [text for text in texts if not any(name in text for name in named)]
        for text, ids in zip(texts, self._encoder().encode(texts), strict=True):
            if tokenizer(text, verbose=False).input_ids != ids:
                raise TextError(
                    f"{self.model} tokenizes differently as a Hugging Face tokenizer: {text[:60]!r}"
                )

    def _tokenizer(self) -> Any:
        """The tokenizer as transformers has it."""
        assert self.model is not None
        if self.tokenizer_type in SENTENCEPIECE_TYPES:
            return from_sentencepiece(self.model)
        try:
            return AutoTokenizer.from_pretrained(self.model, trust_remote_code=False)
        except Exception as error:  # tokenizers raises bare exceptions of a damaged file
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise TextError(f"{self.model} has no Hugging Face form: {reason}") from error

    def _encoder(self) -> Any:
        assert self.tokenizer_type is not None and self.model is not None
        try:
            return build_encoder(self.tokenizer_type, self.model)
        except DataError as error:
            raise TextError(f"{error}; --tokenizer-model names it") from error


def tokenizer_type_of(model: str) -> str:
    """Megatron's type of the tokenizer that a file or folder holds."""
    path = Path(model)
    if not path.is_file():
        return "HuggingFaceTokenizer"
    try:
        proto = read_model(model)
    except Exception:  # of protobuf's own kind: the file is no such message
        return "TikTokenizer"
    return "SentencePieceTokenizer" if proto.pieces else "TikTokenizer"


def _name_code(path: Path) -> None:
    """Say in a tokenizer_config.json where the class is."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields |= {"tokenizer_class": TOKENIZER_CLASS, "auto_map": TOKENIZER_MAP}
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
