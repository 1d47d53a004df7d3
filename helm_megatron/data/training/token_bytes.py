"""How many bytes of text each token stands for, so that losses of different tokenizers compare."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

# SentencePiece's mark for a space.
_SPACE = "\u2581"


def token_bytes(tokenizer: Any) -> Tensor | None:
    """Bytes of UTF-8 by token id, fp32 `[vocabulary]`; None where the tokenizer cannot tell.

    Of byte-level BPE, SentencePiece and its like. Special tokens (the end of a document) have none.
    The sum over a text's tokens is the size of the text as the tokenizer has normalized it;
    SentencePiece's leading space counts.

    Args:
        tokenizer: Megatron's, or a Hugging Face tokenizer.
    """
    inner = getattr(getattr(tokenizer, "_tokenizer", tokenizer), "tokenizer", tokenizer)
    inner = getattr(inner, "sp_model", inner)  # of what transformers calls SentencePiece by
    sizes: list[int] | None
    if hasattr(inner, "id_to_piece"):
        sizes = _of_sentencepiece(inner)
    elif hasattr(inner, "backend_tokenizer"):
        sizes = _of_hugging_face(inner)
    else:
        return None
    return None if sizes is None else torch.tensor(sizes, dtype=torch.float32)


def _of_sentencepiece(model: Any) -> list[int]:
    sizes = []
    for token in range(model.get_piece_size()):
        if model.is_byte(token):
            sizes.append(1)
        elif model.is_control(token) or model.is_unused(token) or model.is_unknown(token):
            sizes.append(0)
        else:
            sizes.append(_size(model.id_to_piece(token)))
    return sizes


def _of_hugging_face(tokenizer: Any) -> list[int] | None:
    model = json.loads(tokenizer.backend_tokenizer.to_str())
    stages = [model.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")]
    parts = json.dumps(stages, ensure_ascii=False)
    pieces = _SPACE in parts or '"ByteFallback"' in parts
    if not ('"ByteLevel"' in parts or pieces):
        return None  # words that were split or joined in other ways
    special = set(tokenizer.all_special_ids)
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    added = set(tokenizer.added_tokens_decoder)
    sizes = []
    for token, text in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))):
        if token in special or text is None:
            sizes.append(0)
        elif token in added or not pieces:
            # Byte-level tokens have a character for every byte.
            sizes.append(len(text.encode()) if token in added else len(text))
        elif len(text) == 6 and text.startswith("<0x"):
            sizes.append(1)
        else:
            sizes.append(_size(text))
    return sizes


def _size(piece: str) -> int:
    return len(piece.replace(_SPACE, " ").encode())
