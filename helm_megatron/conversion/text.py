"""The tokenizer of a checkpoint as Hugging Face files; the text that models are compared on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from helm_megatron.conversion.sentencepiece_tokenizer import from_sentencepiece
from helm_megatron.data.encoders import SENTENCEPIECE_TYPES, build_encoder
from helm_megatron.data.errors import DataError
from helm_megatron.errors import HelmError
from helm_megatron.hf.configuration_helm import HelmConfig

SAMPLE = (
    "A tree does not fit into a plane. Every level of it has more branches than the one before, "
    "and soon there is no room for them on a circle whose length grows only with its radius. In "
    "hyperbolic space the length of a circle grows exponentially, as the tree does: an animal is a "
    "living thing, a dog is an animal, and a terrier is a dog; each step down has a place of its "
    "own, far from its cousins and near to its parent.\n"
    "Words are like that: a few are general and many are special, 1 of 10 or 1 of 10,000.\n"
)
SAMPLE_TOKENS = 128


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
        if encoder.eod is None:
            return encoder.vocab_size, {}
        # Documents end with it; it pads too, where it is masked.
        return encoder.vocab_size, {"eos_token_id": encoder.eod, "pad_token_id": encoder.eod}

    def sample(self, config: HelmConfig) -> Tensor:
        """Tokens `[1, s]` of the sample text; its bytes if there is no tokenizer."""
        if self.has_tokenizer:
            [ids] = self._encoder().encode([SAMPLE])
        else:
            ids = [byte % config.vocab_size for byte in SAMPLE.encode()]
        return torch.tensor([ids[: min(SAMPLE_TOKENS, config.max_position_embeddings)]])

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files, so that AutoTokenizer gives the ids of training.

        Raises:
            TextError: it gives others on the sample text.
        """
        if not self.has_tokenizer:
            return
        assert self.model is not None
        if self.tokenizer_type in SENTENCEPIECE_TYPES:
            tokenizer = from_sentencepiece(self.model)
        else:
            tokenizer = AutoTokenizer.from_pretrained(self.model, trust_remote_code=False)
        tokenizer.save_pretrained(folder)
        [ids] = self._encoder().encode([SAMPLE])
        if tokenizer(SAMPLE).input_ids != ids:
            raise TextError(f"{self.model} tokenizes differently as a Hugging Face tokenizer")

    def _encoder(self) -> Any:
        assert self.tokenizer_type is not None and self.model is not None
        try:
            return build_encoder(self.tokenizer_type, self.model)
        except DataError as error:
            raise TextError(f"{error}; --tokenizer-model names it") from error
