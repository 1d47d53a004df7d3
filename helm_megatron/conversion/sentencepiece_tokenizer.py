"""A SentencePiece model as a Hugging Face tokenizer that gives the same ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from helm_megatron.hf.tokenization_helm import HelmTokenizer

_UNIGRAM, _BPE = 1, 2
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4


def from_sentencepiece(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a `.model` file: a fast one, or else SentencePiece itself.

    Like Megatron it adds no special tokens to a text; it pads on the left, with the end-of-document
    token. Unlike SentencePiece it reads a special token's name in a text as that token.
    """
    proto = read_model(model)
    return by_sentencepiece(model, proto) if why_not_fast(proto) else fast(proto)


def read_model(model: str) -> Any:
    """What a `.model` file holds."""
    from sentencepiece import sentencepiece_model_pb2 as schema

    return schema.ModelProto.FromString(Path(model).read_bytes())  # type: ignore[attr-defined]


def why_not_fast(proto: Any) -> str | None:
    """What a model has that no fast tokenizer can follow; None if it has nothing such.

    Rules of a normalizer look at what stands before and after, and so do the texts beside a
    user-defined symbol; a fast tokenizer takes each apart.
    """
    spec = proto.normalizer_spec
    reasons = {
        "a normalizer": bool(spec.precompiled_charsmap),
        "a denormalizer": bool(proto.denormalizer_spec.precompiled_charsmap),
        "user-defined symbols": any(p.type == _USER_DEFINED for p in proto.pieces),
        "spaces as they are": not spec.escape_whitespaces,
        "spaces after words": proto.trainer_spec.treat_whitespace_as_suffix,
        "pieces that look like bytes": any(
            "<0" in p.piece for p in proto.pieces if p.type == _NORMAL
        ),
        "a kind other than BPE and unigram": proto.trainer_spec.model_type not in (_UNIGRAM, _BPE),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def special_tokens(proto: Any) -> dict[str, str]:
    """The special tokens of a model by transformers' names; none begins a text in training."""
    trainer = proto.trainer_spec
    names = {"unk_token": trainer.unk_piece}
    if trainer.eos_id >= 0:
        names["eos_token"] = names["pad_token"] = trainer.eos_piece
    return names


def by_sentencepiece(model: str, proto: Any) -> PreTrainedTokenizerBase:
    """The tokenizer that calls SentencePiece; its code travels with the folder."""
    return HelmTokenizer(
        vocab_file=model, clean_up_tokenization_spaces=False, **special_tokens(proto)
    )


def fast(proto: Any) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a model that has nothing of `why_not_fast`."""
    tokenizer = tokenizers.Tokenizer(_model(proto))
    tokenizer.normalizer = _normalizer(proto.normalizer_spec)
    if proto.trainer_spec.model_type == _UNIGRAM and proto.trainer_spec.byte_fallback:
        # A text that has the name of a byte's piece is not that byte.
        parts = Regex(r"<(?=0x[0-9A-F]{2}>)")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(parts, "isolated")
    decode = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        decode.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(decode)
    controls = [piece.piece for piece in proto.pieces if piece.type == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in controls])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **special_tokens(proto),
    )


def _model(proto: Any) -> Any:
    spec = proto.trainer_spec
    if spec.model_type == _UNIGRAM:
        scored = [(piece.piece, piece.score) for piece in proto.pieces]
        return models.Unigram(scored, unk_id=spec.unk_id, byte_fallback=spec.byte_fallback)
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
    if spec.remove_extra_whitespaces:  # SentencePiece knows one space, U+0020
        steps += [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    steps.append(normalizers.Replace(" ", "▁"))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(r"▁+\z"), ""))
    return normalizers.Sequence(steps)
