import filecmp
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder
from transformers import PreTrainedTokenizerFast

from helm_megatron.data.encoders import TOKENIZER_TYPES
from helm_megatron.data.errors import DataError
from helm_megatron.data.preprocess import TokenizerSpec, output_paths, preprocess


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


@pytest.mark.parametrize("append_eod", [False, True])
@pytest.mark.parametrize(
    "tokenizer_type",
    TOKENIZER_TYPES,
)
def test_files_are_those_of_megatrons_tokenizer_and_builder(
    texts, corpus, tmp_path, request, megatron_tokenizer, tokenizer_type, append_eod
):
    family = "huggingface" if tokenizer_type == "HuggingFaceTokenizer" else "sentencepiece"
    model = request.getfixturevalue(f"{family}_model")
    spec = TokenizerSpec(tokenizer_type, model, append_eod)
    preprocess([corpus], tmp_path / "ours", spec, ["title", "text"], workers=2)

    tokenizer = megatron_tokenizer(tokenizer_type, model)
    for key, values in {"text": texts, "title": [text[:20] for text in texts]}.items():
        theirs = output_paths(tmp_path / "theirs", key)
        dtype = DType.optimal_dtype(tokenizer.vocab_size)
        builder = IndexedDatasetBuilder(str(theirs[0]), dtype=dtype)
        for value in values:
            ids = tokenizer.tokenize(value)
            if ids and append_eod:
                ids.append(tokenizer.eod)
            builder.add_document(ids, [len(ids)] if ids else [])
        builder.finalize(str(theirs[1]))
        for ours, expected in zip(output_paths(tmp_path / "ours", key), theirs, strict=True):
            assert filecmp.cmp(ours, expected, shallow=False), ours.name


def test_several_inputs_keep_their_order_and_batches_do_not_show(tmp_path, sentencepiece_model):
    # Several megabytes, so that several batches are in flight at once.
    texts = [f"document {i} " * 2000 for i in range(150)]
    inputs = [tmp_path / "1.jsonl", tmp_path / "2.jsonl"]
    for path, part in zip(inputs, (texts[:100], texts[100:]), strict=True):
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    spec = TokenizerSpec("SentencePieceTokenizer", sentencepiece_model)
    counts = preprocess(inputs, tmp_path / "out", spec, workers=2)
    dataset = IndexedDataset(str(tmp_path / "out_text_document"))
    processor = sentencepiece.SentencePieceProcessor(model_file=sentencepiece_model)
    assert [processor.decode(document.tolist()) for document in dataset] == texts
    assert (counts.documents, counts.empty) == (150, 0)
    assert counts.tokens == sum(map(len, dataset))
    assert counts.bytes_read == sum(path.stat().st_size for path in inputs)


def test_megatrons_dataset_reads_the_documents(
    texts, corpus, tmp_path, sentencepiece_model, megatron_tokenizer, gpt_datasets
):
    spec = TokenizerSpec("SentencePieceTokenizer", sentencepiece_model, append_eod=True)
    preprocess([corpus], tmp_path / "out", spec)
    tokenizer = megatron_tokenizer(spec.type, spec.model)
    train, valid, test = gpt_datasets(tmp_path / "out_text_document", "90,10,0", tokenizer)
    assert len(train) > len(valid) > 10 and test is None
    for sample in (train[0], valid[3]):
        assert sample["labels"][:-1].equal(sample["tokens"][1:])
        ends = np.flatnonzero(sample["tokens"] == tokenizer.eod)
        whole = sample["tokens"][ends[0] + 1 : ends[1]].tolist()
        assert tokenizer.detokenize(whole) in texts


def test_bad_line_leaves_existing_output_alone(corpus, tmp_path, sentencepiece_model):
    prefix = tmp_path / "out"
    spec = TokenizerSpec("SentencePieceTokenizer", sentencepiece_model)
    preprocess([corpus], prefix, spec)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a"}\n' * 1000 + "oops\n")
    with pytest.raises(DataError, match=r"bad.jsonl:1001: not valid JSON"):
        preprocess([corpus, bad], prefix, spec, overwrite=True)
    with pytest.raises(DataError, match="--overwrite"):
        preprocess([corpus], prefix, spec)
    bad.unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_input_without_documents(tmp_path, sentencepiece_model):
    (tmp_path / "blank.jsonl").write_text("\n\n")
    spec = TokenizerSpec("SentencePieceTokenizer", sentencepiece_model)
    with pytest.raises(DataError, match=r"blank.jsonl: no documents"):
        preprocess([tmp_path / "blank.jsonl"], tmp_path / "out", spec)
    assert [path.name for path in tmp_path.iterdir()] == ["blank.jsonl"]


def test_tokenizer_errors(tmp_path, corpus, texts):
    for spec, message in [
        (TokenizerSpec("SentencePieceTokenizer", str(corpus)), "not a SentencePiece model"),
        (TokenizerSpec("SentencePieceTokenizer", "nowhere.model"), "nowhere.model: no such"),
        (TokenizerSpec("HuggingFaceTokenizer", str(tmp_path)), "cannot be loaded as a tokenizer"),
        (TokenizerSpec("GPT2BPETokenizer", "x"), "is not supported here; use one of"),
    ]:
        with pytest.raises(DataError, match=message):
            spec.build()
    with (tmp_path / "no_eos.model").open("wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=stream, vocab_size=300, eos_id=-1
        )
    model = str(tmp_path / "no_eos.model")
    assert TokenizerSpec("Llama2Tokenizer", model).build().vocab_size == 300
    with pytest.raises(DataError, match="no end-of-document token"):
        TokenizerSpec("Llama2Tokenizer", model, append_eod=True).build()


def test_workers_load_neither_torch_nor_megatron():
    code = (
        "import sys, helm_megatron.data.preprocess;"
        "print([m for m in ('torch', 'megatron', 'transformers') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_tool(run_tool, corpus, tmp_path, sentencepiece_model):
    flags = ["--output-prefix", tmp_path / "out", "--tokenizer-type", "SentencePieceTokenizer"]
    flags += ["--tokenizer-model", sentencepiece_model, "--append-eod", "--workers", 1]
    done = run_tool("preprocess_data.py", "--input", corpus, *flags)
    assert done.returncode == 0, done.stderr
    assert "tokens/s" in done.stderr and "warning: 1 empty texts" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        "out_text_document.bin",
        "out_text_document.idx",
    }
    failed = run_tool("preprocess_data.py", "--input", Path("gone.jsonl"), *flags)
    assert failed.returncode == 1
    assert failed.stderr.strip() == "error: gone.jsonl: no such file; see --input"
