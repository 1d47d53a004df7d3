"""SentencePiece BPE word by word, which a cache makes several times faster.

SentencePiece turns spaces into U+2581 and merges neighbors anywhere in a text. In most models no
token has a character before a U+2581, so no merge joins the end of a word with the space after
it: the words between such places, each with the spaces before it, have the same tokens alone as
within the text. A few words make up most of any text.
"""

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

SPACE = "\u2581"
# Longer words are rare and their number has no bound: they are not kept.
MAX_CHARACTERS = 40
MAX_WORDS = 1 << 18

# A word with the spaces before it; those at the end of the text belong to the last word, since
# SentencePiece gives no tokens for an empty text.
WORD = re.compile(r"[ \u2581]*[^ \u2581]+(?:[ \u2581]+\Z)?")


def has_words(model: bytes) -> bool:
    """Whether the tokens of a model (its .model file) are those of its words, taken alone."""
    proto = _parse(model)
    normalizer = proto.normalizer_spec
    if proto.trainer_spec.model_type != proto.trainer_spec.BPE:
        return False  # unigram sums scores over the text: rounding could tell
    plain = not (normalizer.precompiled_charsmap or proto.denormalizer_spec.precompiled_charsmap)
    if not plain or normalizer.remove_extra_whitespaces or not normalizer.escape_whitespaces:
        return False
    if proto.trainer_spec.treat_whitespace_as_suffix:
        return False
    kinds = proto.SentencePiece
    in_text = [p.piece for p in proto.pieces if p.type in (kinds.NORMAL, kinds.USER_DEFINED)]
    # Without a token for it a space could join unknown characters on both sides of it.
    return SPACE in in_text and not any(SPACE in p.lstrip(SPACE) or " " in p for p in in_text)


def _parse(model: bytes) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2  # its classes are made when it is imported
    proto = messages.ModelProto.FromString(model)
    if not all(isinstance(piece.piece, str) for piece in proto.pieces):
        raise ValueError("a piece is not UTF-8")
    return proto


class WordEncoder:
    """Encodes by words with a model that `has_words`."""

    def __init__(self, processor: Any, model: bytes) -> None:
        self._processor = processor
        self._adds_space = _parse(model).normalizer_spec.add_dummy_prefix
        self._known: dict[str, list[int]] = {}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text: those of the processor's `encode`."""
        documents = [self._words(text) for text in texts]
        known = self._known
        if len(known) > MAX_WORDS:
            known.clear()
        new = list(set().union(*documents).difference(known))
        known.update(
            zip(new, self._processor.encode(new, out_type=int, num_threads=1), strict=True)
        )
        # map and chain: a loop here would take longer than the rest.
        encoded = [list(chain.from_iterable(map(known.__getitem__, words))) for words in documents]
        for word in new:
            if len(word) > MAX_CHARACTERS:
                del known[word]
        return encoded

    def _words(self, text: str) -> list[str]:
        odd = "  " in text or SPACE in text or text.startswith(" ") or text.endswith(" ")
        if text and self._adds_space and not odd:
            return text.split(" ")  # what the expression gives, but faster
        words = WORD.findall(text)
        if not words:
            return [text] if text else []  # nothing but spaces
        if self._adds_space:
            # The processor puts a space before each word, as it does before a text.
            words[1:] = [word[1:] for word in words[1:]]
        return words
