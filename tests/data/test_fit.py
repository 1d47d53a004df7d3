import json
import subprocess
import sys

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from helm_megatron.data.errors import DataError
from helm_megatron.data.inputs import find_sources
from helm_megatron.data.pool import TokenizerSpec
from helm_megatron.data.preprocess import Options, preprocess
from helm_megatron.data.tokenizer_training import train_tokenizer
from helm_megatron.data.training.fit import check_fit
from tests import forked
from tests.pretrain.runs import DENSE, ROOT

START = DENSE.index("--mock-data")
FLAGS = DENSE[:START] + DENSE[DENSE.index("--num-workers") :]


@pytest.fixture(scope="module")
def prefix_of(corpus, tmp_path_factory):
    """Preprocess the corpus with a tokenizer; returns the prefix for --data-path."""

    def make(tokenizer_type, model) -> str:
        prefix = tmp_path_factory.mktemp("data") / "a"
        spec = TokenizerSpec(tokenizer_type, model, append_eod=True)
        preprocess(find_sources([corpus]), prefix, spec, Options(max_bad_records=9))
        return f"{prefix}_text_document"

    return make


@pytest.fixture
def check(monkeypatch):
    """Check data against the tokenizer of a command line."""
    from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
    from megatron.training.arguments import parse_args

    from helm_megatron.pretrain import add_args

    def run(prefix, *flags):
        argv = ["pretrain_helm.py", *FLAGS, "--data-path", prefix, *flags]
        monkeypatch.setattr(sys, "argv", list(map(str, argv)))
        args = parse_args(add_args)
        check_fit(args, build_tokenizer(args))

    return run


def sentencepiece_flags(model):
    return "--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", model


def test_own_tokenizer_fits(prefix_of, check, sentencepiece_model, huggingface_model):
    prefix = prefix_of("SentencePieceTokenizer", sentencepiece_model)
    check(prefix, *sentencepiece_flags(sentencepiece_model))
    check(prefix, "--tokenizer-type", "Llama2Tokenizer", "--tokenizer-model", sentencepiece_model)
    prefix = prefix_of("HuggingFaceTokenizer", huggingface_model)
    flags = "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", huggingface_model
    check(prefix, *flags)


def test_the_same_vocabulary_in_another_library_fits(
    prefix_of, check, rank_file, rank_encoding, tmp_path
):
    """Hugging Face's version of a rank file, which puts a BOS before texts."""
    to_letters = dict(zip(range(256), byte_letters(), strict=True))
    words = [
        "".join(to_letters[value] for value in rank_encoding.decode_single_token_bytes(rank))
        for rank in range(rank_encoding.n_vocab - 256)
    ]
    vocabulary = {word: rank for rank, word in enumerate(words)}
    merges = [
        (word[:cut], word[cut:])
        for word in words
        for cut in range(1, len(word))
        if word[:cut] in vocabulary and word[cut:] in vocabulary
    ]
    model = tokenizers.models.BPE(vocabulary, merges, ignore_merges=True)
    tokenizer = tokenizers.Tokenizer(model)
    split = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(rank_encoding._pat_str), behavior="isolated"
    )
    letters = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, letters])
    specials = [f"<|{i}|>" for i in range(256)]
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|0|> $A", special_tokens=[("<|0|>", len(words))]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|0|>", eos_token="<|1|>"
    ).save_pretrained(tmp_path / "hf")
    prefix = prefix_of("TikTokenizer", rank_file)
    flags = "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", tmp_path / "hf"
    check(prefix, *flags)


def byte_letters() -> list[str]:
    """The letter for each byte in byte-level vocabularies: itself where it can be seen."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return [chr(value) if value in seen else chr(next(rest)) for value in range(256)]


def test_another_tokenizer_is_refused_and_both_are_named(
    prefix_of, check, corpus, tmp_path, sentencepiece_model, huggingface_model
):
    prefix = prefix_of("SentencePieceTokenizer", sentencepiece_model)
    other = tmp_path / "other"
    train_tokenizer([corpus], other, 600, "unigram")
    with pytest.raises(DataError) as refusal:
        check(prefix, *sentencepiece_flags(f"{other}.model"))
    for name in (prefix, sentencepiece_model, f"{other}.model", "another tokenizer"):
        assert name in str(refusal.value)
    with pytest.raises(DataError, match=f"another tokenizer.*{huggingface_model}"):
        flags = "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", huggingface_model
        check(prefix, *flags)
    train_tokenizer([corpus], other, 500, overwrite=True)
    with pytest.raises(DataError, match="of 600 tokens, more than the 500 of"):
        check(prefix, *sentencepiece_flags(f"{other}.model"))
    check(prefix, "--tokenizer-type", "NullTokenizer", "--vocab-size", 600)
    with pytest.raises(DataError, match="of 600 tokens, more than the 599 of this run's Null"):
        check(prefix, "--tokenizer-type", "NullTokenizer", "--vocab-size", 599)


def test_stale_damaged_and_missing_sidecars(prefix_of, check, sentencepiece_model):
    prefix = prefix_of("SentencePieceTokenizer", sentencepiece_model)
    flags = sentencepiece_flags(sentencepiece_model)
    with open(f"{prefix}.json") as file:
        sidecar = json.load(file)
    for damage, message in [
        ({"format": "other"}, "not a sidecar of this version"),
        ({"tokenizer": None}, "is damaged: tokenizer.type is missing"),
        ({"files": {"bin": {"bytes": 1}, "idx": {}}}, "is not the file that"),
    ]:
        with open(f"{prefix}.json", "w") as file:
            json.dump(sidecar | damage, file)
        with pytest.raises(DataError, match=message):
            check(prefix, *flags)
    with open(f"{prefix}.json", "w") as file:
        file.write("{")
    with pytest.raises(DataError, match="not valid JSON"):
        check(prefix, *flags)
    subprocess.run(["rm", f"{prefix}.json"], check=True)
    check(prefix, *flags)


def test_training_refuses_in_one_line(prefix_of, sentencepiece_model):
    prefix = prefix_of("SentencePieceTokenizer", sentencepiece_model)
    flags = "--tokenizer-type", "NullTokenizer", "--vocab-size", "100", "--train-iters", "1"
    done = forked.command(ROOT / "pretrain_helm.py", *FLAGS, "--data-path", prefix, *flags)
    assert done.returncode == 2
    assert "of 600 tokens, more than the 100 of this run's NullTokenizer" in done.stderr
    assert "Traceback" not in done.stderr
