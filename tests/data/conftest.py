import argparse
import base64
import gzip
import json
import subprocess
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from transformers import PreTrainedTokenizerFast

from helm_megatron import megatron_patches
from helm_megatron.data.tokenizer_training import train_tokenizer
from tests import forked

# Before anything here imports megatron: other tests of the same pytest run need it.
megatron_patches.apply()

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "examples" / "data" / "wordnet_glosses.jsonl.gz"


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Real text with what trips tokenizers up: other scripts, control characters, odd spacing."""
    with gzip.open(CORPUS, "rt", encoding="utf-8") as lines:
        glosses = [json.loads(line)["text"] for line in islice(lines, 1000)]
    odd = ["", " ", "  two  spaces ", "tab\tand\nnewlines\n\n", "naïve 日本語 🙂", "</s> <s>", "\0"]
    return odd + glosses


@pytest.fixture(scope="session")
def corpus(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The texts as JSONL with keys "text" and "title", and blank lines between."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    documents = ({"text": text, "title": text[:20]} for text in texts)
    path.write_text("\n\n".join(map(json.dumps, documents)) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def sentencepiece_model(corpus: Path) -> str:
    """A SentencePiece model trained on the texts."""
    train_tokenizer([corpus], corpus.with_name("tokenizer"), 600)
    return str(corpus.with_name("tokenizer.model"))


@pytest.fixture(scope="session")
def huggingface_model(texts, tmp_path_factory) -> str:
    """A byte-level BPE tokenizer that puts a BOS before every text."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, 600, special_tokens=["<bos>", "<eos>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 0)]
    )
    folder = tmp_path_factory.mktemp("huggingface")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, bos_token="<bos>", eos_token="<eos>"
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def rank_encoding() -> tiktoken.Encoding:
    """A vocabulary as Llama 3's, but of 2,000 ranks: bytes, then pairs, with 256 special tokens."""
    letters = sorted(set(bytes(range(97, 123)) + b" etaoinsh"))
    tokens = [bytes([value]) for value in range(256)]
    tokens += [bytes([a, b]) for a in letters for b in letters]
    tokens += [bytes([32, a, b]) for a in letters[1:] for b in letters[1:]]
    tokens += [text.encode() for text in ("日", "本", "  ", "\n\n", " the", "123")]
    ranks = {token: rank for rank, token in enumerate(dict.fromkeys(tokens))}
    special = {f"<|{i}|>": len(ranks) + i for i in range(256)}
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return tiktoken.Encoding("test", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


@pytest.fixture(scope="session")
def rank_file(rank_encoding: tiktoken.Encoding, tmp_path_factory) -> str:
    """The vocabulary as Meta ships Llama 3's."""
    path = tmp_path_factory.mktemp("ranks") / "tokenizer.model"
    lines = (
        base64.b64encode(rank_encoding.decode_single_token_bytes(rank)) + b" %d\n" % rank
        for rank in range(rank_encoding.n_vocab - 256)
    )
    path.write_bytes(b"".join(lines))
    return str(path)


@pytest.fixture
def run_tool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script of tools/ with arguments."""

    def run(name: str, *args: object) -> subprocess.CompletedProcess[str]:
        return forked.command(ROOT / "tools" / name, *args, timeout=120)

    return run


@pytest.fixture(scope="session")
def megatron_tokenizer() -> Callable:
    """Build Megatron's own tokenizer of a type and model, all other flags at their defaults."""
    from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
    from megatron.training.config.training_config import TokenizerConfig

    def build(tokenizer_type: str, model: str):
        flags = TokenizerConfig(
            tokenizer_type=tokenizer_type, tokenizer_model=model, pad_vocab_size=False
        )
        return build_tokenizer(argparse.Namespace(**vars(flags)))

    return build


@pytest.fixture
def gpt_datasets(tmp_path: Path) -> Callable:
    """Build Megatron's train, valid and test datasets of a .bin/.idx prefix."""
    from megatron.core.datasets.blended_megatron_dataset_builder import (
        BlendedMegatronDatasetBuilder,
    )
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    def build(prefix: Path, split: str, tokenizer) -> list:
        config = GPTDatasetConfig(
            random_seed=1,
            sequence_length=64,
            blend=([str(prefix)], None),
            split=split,
            path_to_cache=str(tmp_path / "cache"),
            tokenizer=tokenizer,
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
        )
        builder = BlendedMegatronDatasetBuilder(GPTDataset, [10, 10, 10], lambda: True, config)
        return builder.build()

    return build
