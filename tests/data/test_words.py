import io
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helm_megatron.data import words as module
from helm_megatron.data.words import WordEncoder, has_words

MODELS = {
    "lossless": {},
    "without dummy prefix": {"add_dummy_prefix": False},
    "without bytes": {"byte_fallback": False},
    "user symbols": {"user_defined_symbols": ["<x>", "\u2581ab", "\u2581\u2581"]},
    "many spaces": {"split_by_whitespace": True, "user_defined_symbols": ["\u2581" * 4]},
}
OTHERS = {
    "unigram": {"model_type": "unigram"},
    "normalized": {"normalization_rule_name": "nmt_nfkc"},
    "extra spaces removed": {"remove_extra_whitespaces": True},
    "suffix": {"treat_whitespace_as_suffix": True},
    "words joined": {"split_by_whitespace": False, "vocab_size": 900},
    "symbol with a space in it": {"user_defined_symbols": ["a b"]},
}
# Letters that occur and do not occur in the corpus, and every kind of space.
TEXT = st.text(
    st.sampled_from([*"abet <x>\u2581\u2581  ", "\n", "\t", "\u00a0", "\u65e5", "\u5b57"])
)


def train(texts, options) -> bytes:
    model = io.BytesIO()
    defaults = {
        "vocab_size": 600,
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "byte_fallback": True,
        "remove_extra_whitespaces": False,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, **(defaults | options)
    )
    return model.getvalue()


@pytest.fixture(scope="module", params=MODELS)
def both(request, texts):
    """A processor and its encoder by words."""
    model = train(texts, MODELS[request.param])
    assert has_words(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return processor, WordEncoder(processor, model)


@given(texts=st.lists(st.one_of(TEXT, st.text())))
@example(texts=["", " ", "  ", "a ", " a", "a  b ", "\u2581", "a\u2581b", "\u65e5 \u5b57", " \n "])
@example(texts=["word " * 50, "x" * 100 + " " + "y" * 100, "\n a \n  b"])
@settings(deadline=None)
def test_tokens_are_the_processors(both, texts):
    processor, encoder = both
    assert encoder.encode(texts) == processor.encode(texts, out_type=int)
    assert encoder.encode(texts) == processor.encode(texts, out_type=int)  # now known


def test_real_text(both, texts, monkeypatch):
    processor, encoder = both
    monkeypatch.setattr(module, "MAX_WORDS", 100)
    for start in range(0, len(texts), 50):
        part = texts[start : start + 50]
        assert encoder.encode(part) == processor.encode(part, out_type=int)
    assert all(len(word) <= module.MAX_CHARACTERS for word in encoder._known)


@pytest.mark.parametrize("kind", OTHERS)
def test_models_whose_words_depend_on_each_other(kind, texts):
    assert not has_words(train(texts, OTHERS[kind]))


def test_own_tokenizers_have_words(sentencepiece_model):
    assert has_words(Path(sentencepiece_model).read_bytes())
