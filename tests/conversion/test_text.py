"""Exported tokenizers give the ids of training."""

import gzip
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from helm_megatron.conversion.generate import continuation
from helm_megatron.conversion.text import Text, TextError
from helm_megatron.data.encoders import build_encoder
from helm_megatron.data.tokenizer_training import train_tokenizer
from helm_megatron.hf.configuration_helm import HelmConfig

CORPUS = Path(__file__).parents[2] / "examples/data/wordnet_glosses.jsonl.gz"
ODD = [
    "",
    " two  spaces and a\ttab\n\nlines ",
    "na\u00efve \u4e2d\u6587 \U0001f600",
    "x" * 50,
    "1.000,5",
]


@pytest.fixture(scope="module")
def glosses():
    with gzip.open(CORPUS, "rt") as file:
        return [json.loads(line)["text"] for line, _ in zip(file, range(2000), strict=False)]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def sentencepiece(request, glosses, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "text.txt").write_text("\n".join(glosses))
    train_tokenizer([folder / "text.txt"], folder / "t", 600, request.param)
    return str(folder / "t.model")


def test_sentencepiece(sentencepiece, glosses, tmp_path):
    text = Text("SentencePieceTokenizer", sentencepiece)
    HelmConfig().save_pretrained(tmp_path)
    text.save(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    encoder = build_encoder("SentencePieceTokenizer", sentencepiece)
    texts = [*glosses, *ODD]
    assert tokenizer(texts).input_ids == encoder.encode(texts)
    for original in texts:
        assert tokenizer.decode(tokenizer(original).input_ids) == original
    size, ids = text.vocabulary()
    assert size == len(tokenizer) == 600
    assert ids == {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    assert tokenizer.padding_side == "left"


def test_a_continuation_joins_its_prompt(sentencepiece, glosses, tmp_path):
    """Wherever a text is cut into prompt and continuation; spaces at the cut are not lost."""
    Text("SentencePieceTokenizer", sentencepiece).save(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text in glosses[:5]:
        ids = tokenizer(text).input_ids
        end = tokenizer.eos_token_id
        for cut in range(len(ids)):
            prompt = tokenizer.decode(ids[:cut])
            assert prompt + continuation(tokenizer, [end, *ids, end], cut + 1) == text


def test_hugging_face_tokenizer(sentencepiece, glosses, tmp_path):
    Text("SentencePieceTokenizer", sentencepiece).save(tmp_path / "one")
    again = Text("HuggingFaceTokenizer", str(tmp_path / "one"))
    again.save(tmp_path / "two")
    one, two = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("one", "two"))
    assert one(glosses[:100]).input_ids == two(glosses[:100]).input_ids
    assert again.vocabulary()[0] == 600


def test_missing_tokenizer(tmp_path):
    with pytest.raises(TextError, match=r"no such SentencePiece model.*--tokenizer-model"):
        Text("SentencePieceTokenizer", str(tmp_path / "none.model")).vocabulary()
