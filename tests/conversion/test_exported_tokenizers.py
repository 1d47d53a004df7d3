"""Exported tokenizers give training's ids on every text, whatever SentencePiece model it is."""

import os
import subprocess
import sys
import unicodedata

import pytest
import sentencepiece
from transformers import PreTrainedTokenizerFast

from helm_megatron.conversion.hf_folder import load_tokenizer
from helm_megatron.conversion.text import Text, TextError, tokenizer_type_of
from helm_megatron.conversion.to_hf import code_files
from helm_megatron.conversion.tokenizer_probes import probes
from helm_megatron.data.encoders import build_encoder
from helm_megatron.hf.configuration_helm import HelmConfig

WORDS = "river stone lantern harbor violet engine marble window na\u00efve \u4e2d\u6587 aaaa\n"
IDENTITY = dict(normalization_rule_name="identity", remove_extra_whitespaces=False)
FAST = {
    "identity": dict(model_type="bpe", byte_fallback=True, **IDENTITY),
    "identity-unigram": dict(model_type="unigram", byte_fallback=True, **IDENTITY),
    "no-bytes": dict(model_type="bpe", **IDENTITY),
    "no-bytes-unigram": dict(model_type="unigram", **IDENTITY),
    "no-dummy": dict(model_type="bpe", byte_fallback=True, add_dummy_prefix=False, **IDENTITY),
    "one-space": dict(model_type="bpe", byte_fallback=True, normalization_rule_name="identity"),
    "one-space-unigram": dict(model_type="unigram", normalization_rule_name="identity"),
}
SLOW = {
    "default": dict(model_type="bpe", byte_fallback=True),
    "default-unigram": dict(model_type="unigram"),
    "nfkc-cf": dict(model_type="bpe", normalization_rule_name="nfkc_cf"),
    "symbols": dict(
        model_type="bpe", byte_fallback=True, user_defined_symbols=["<|user|>", "<|bot|>"]
    ),
    "symbols-of-spaces": dict(
        model_type="bpe", byte_fallback=True, user_defined_symbols=["    ", "  "], **IDENTITY
    ),
    "symbols-unigram": dict(model_type="unigram", user_defined_symbols=["<|a|>"], **IDENTITY),
    "digits": dict(
        model_type="bpe", byte_fallback=True, user_defined_symbols=list("0123456789"), **IDENTITY
    ),
    "suffix": dict(model_type="bpe", treat_whitespace_as_suffix=True),
    "characters": dict(model_type="char"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "c.txt").write_text(WORDS * 50)
    for name, options in (FAST | SLOW).items():
        size = {} if options["model_type"] == "char" else {"vocab_size": 330}
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "c.txt"),
            model_prefix=str(folder / name),
            hard_vocab_limit=False,
            minloglevel=2,
            **size,
            **options,
        )
    return folder


def exported(models, name, folder):
    HelmConfig().save_pretrained(folder)
    Text("SentencePieceTokenizer", str(models / f"{name}.model")).save(folder, 77)
    encoder = build_encoder("SentencePieceTokenizer", str(models / f"{name}.model"))
    return load_tokenizer(folder), encoder


def differing(tokenizer, encoder, count, seed):
    named = {*tokenizer.added_tokens_encoder, *tokenizer.all_special_tokens}
    texts = probes(count, seed, sorted(set(tokenizer.get_vocab()) - named))
    texts = [text for text in texts if not any(name in text for name in named)]
    ids = encoder.encode(texts)
    different = [
        (text, tokenizer(text, verbose=False).input_ids, wanted)
        for text, wanted in zip(texts, ids, strict=True)
        if tokenizer(text, verbose=False).input_ids != wanted
    ]
    print(f"{len(different)} of {len(texts)} texts have other ids")
    return different, texts


@pytest.mark.parametrize("name", FAST | SLOW)
def test_ids_are_trainings(name, models, tmp_path):
    tokenizer, encoder = exported(models, name, tmp_path)
    assert isinstance(tokenizer, PreTrainedTokenizerFast) == (name in FAST)
    different, _ = differing(tokenizer, encoder, 400, seed=1)
    assert not different, different[0]
    assert tokenizer.model_max_length == 77 and tokenizer.padding_side == "left"
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == encoder.eod
    assert tokenizer.bos_token is None, "training puts none before a text"
    for text in ("river stone", "<|user|>river", "  two  spaces ", "na\u00efve 7 007"):
        ids = encoder.encode([text])[0]
        if tokenizer.unk_token_id not in ids:  # SentencePiece decodes these to " \u2047 "
            assert tokenizer.decode(ids) == encoder.decode(ids)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAST | SLOW)
def test_ten_thousand_texts(name, models, tmp_path):
    tokenizer, encoder = exported(models, name, tmp_path)
    different, texts = differing(tokenizer, encoder, 10_000, seed=2)
    assert len(texts) > 9_900 and not different, different[0]


def test_marks_are_not_dropped(models, tmp_path):
    tokenizer, encoder = exported(models, "default", tmp_path)
    text = unicodedata.normalize("NFD", "Ti\u1ebfng Vi\u1ec7t r\u1ea5t \u0111\u1eb9p \ufb01\u0301")
    assert tokenizer(text).input_ids == encoder.encode([text])[0]
    ids = [tokenizer.eos_token_id, *tokenizer("river").input_ids, tokenizer.eos_token_id]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "river"
    assert tokenizer.decode(ids) == "</s>river</s>"


def test_without_helm_megatron(models, tmp_path):
    """The folder's own code, in a process that has none of this project."""
    _, encoder = exported(models, "symbols", tmp_path)
    for path in code_files():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    code = f"""
import sys
sys.modules["helm_megatron"] = None
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)
tokenizer.save_pretrained({str(tmp_path / "again")!r})
again = AutoTokenizer.from_pretrained({str(tmp_path / "again")!r}, trust_remote_code=True)
print(tokenizer("hi<|bot|>there").input_ids, again("hi<|bot|>there").input_ids)
"""
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "cache")}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    [ids] = encoder.encode(["hi<|bot|>there"])
    assert done.stdout == f"{ids} {ids}\n", done.stderr[-2000:]


def test_a_difference_is_refused(models, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "helm_megatron.conversion.sentencepiece_tokenizer.why_not_fast", lambda proto: None
    )
    with pytest.raises(TextError, match="tokenizes differently"):
        exported(models, "symbols", tmp_path)


def test_types_of_files(models, tmp_path):
    assert tokenizer_type_of(str(models / "default.model")) == "SentencePieceTokenizer"
    (tmp_path / "ranks").write_text("IQ== 0\n")
    assert tokenizer_type_of(str(tmp_path / "ranks")) == "TikTokenizer"
    assert tokenizer_type_of(str(tmp_path)) == "HuggingFaceTokenizer"
