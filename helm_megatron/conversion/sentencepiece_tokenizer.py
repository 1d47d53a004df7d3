"""A SentencePiece model as a fast Hugging Face tokenizer that gives the same ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

_UNIGRAM, _BPE = 1, 2
_CONTROL, _USER_DEFINED = 3, 4


def from_sentencepiece(model: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a `.model` file, BPE or unigram.

    Like Megatron it adds no special tokens to a text; it pads on the left, with the end-of-document
    token. Unlike SentencePiece it reads a special token's name in a text as that token.

    Raises:
        ValueError: the model is of another type.
    """
    from sentencepiece import sentencepiece_model_pb2 as schema

    proto = schema.ModelProto.FromString(Path(model).read_bytes())  # type: ignore[attr-defined]
    tokenizer = tokenizers.Tokenizer(_model(proto))
    tokenizer.normalizer = _normalizer(proto.normalizer_spec)
    decode = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        decode.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(decode)
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        pieces = [p.piece for p in proto.pieces if p.type == kind]
        added = [AddedToken(piece, normalized=False, special=special) for piece in pieces]
        tokenizer.add_special_tokens(added) if special else tokenizer.add_tokens(added)
    trainer = proto.trainer_spec
    names = {"unk_token": trainer.unk_piece}
    if trainer.bos_id >= 0:
        names["bos_token"] = trainer.bos_piece
    if trainer.eos_id >= 0:
        names["eos_token"] = names["pad_token"] = trainer.eos_piece
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **names,
    )


def _model(proto: Any) -> Any:
    spec = proto.trainer_spec
    if spec.model_type == _UNIGRAM:
        scored = [(piece.piece, piece.score) for piece in proto.pieces]
        return models.Unigram(scored, unk_id=spec.unk_id, byte_fallback=spec.byte_fallback)
    if spec.model_type != _BPE:
        raise ValueError("neither a BPE nor a unigram SentencePiece model")
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    return models.BPE(
        ids,
        _merges(proto, ids),
        unk_token=spec.unk_piece,
        fuse_unk=True,
        byte_fallback=spec.byte_fallback,
    )


def _merges(proto: Any, ids: dict[str, int]) -> list[tuple[str, str]]:
    """All pairs whose concatenation is a piece, the best pieces first.

    SentencePiece merges by the score of the result; it keeps no list of pairs.
    """
    merges = []
    for piece in sorted((p for p in proto.pieces if p.type == 1), key=lambda p: -p.score):
        text = piece.piece
        pairs = [(text[:i], text[i:]) for i in range(1, len(text))]
        pairs = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        merges += sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return merges


def _normalizer(spec: Any) -> Any:
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
