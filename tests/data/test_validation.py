"""Fixed validation sets, and the bytes of tokens."""

import argparse
import math

import pytest
import sentencepiece
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from helm_megatron.data.encoders import build_encoder
from helm_megatron.data.training import validation
from helm_megatron.data.training.token_bytes import token_bytes
from helm_megatron.data.training.validation import FixedSet, _RanksBatches

TEXT = "The naïve café: 1,000 trees, and Ελλάδα 🙂 日本.\n\tIt is as it was; so it is.\n"


class Samples:
    """Each has its index as its token."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"tokens": torch.tensor([index]), "loss_mask": torch.ones(1)}


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_every_sample_counts_once_in_every_layout(ranks, micro_batch):
    data = FixedSet(Samples(21), 21, global_batch=8)
    assert data.iterations == 3 and len(data) == 24
    counted = []
    for rank in range(ranks):
        batches = list(_RanksBatches(len(data), micro_batch, rank, ranks))
        # As many in each iteration of each rank as its share of the global batch.
        assert len(batches) == data.iterations * 8 // (micro_batch * ranks)
        for index in sum(batches, []):
            sample = data[index]
            counted += [int(sample["tokens"])] * int(sample["loss_mask"])
    assert sorted(counted) == list(range(21))


def test_the_first_samples_of_a_larger_set():
    data = FixedSet(Samples(40), 16, global_batch=8)
    assert [int(data[i]["loss_mask"]) for i in range(len(data))] == [1] * 16


def arguments(**changed):
    args = dict(
        full_validation=False, multiple_validation_sets=False, mock_data=False, eval_iters=3,
        eval_global_batch_size=8, data_path=None, train_data_path=None, valid_data_path=None,
        test_data_path=None, data_args_path=None, per_split_data_args_path=None,
        per_dataset_sequences_path=None,
    )  # fmt: skip
    return argparse.Namespace(**args | changed)


def test_sizes():
    asked = [100, 72, 24]
    args = arguments()
    validation.take_over(args)
    assert validation.sizes(args, asked) == [100, 24, 24]
    args = arguments(full_validation=True, data_path=["data"], eval_iters=0)
    validation.take_over(args)
    assert not args.full_validation and args.eval_iters == 1
    assert validation.sizes(args, asked) == [100, None, None]
    args = arguments(full_validation=True, mock_data=True)
    validation.take_over(args)
    assert validation.sizes(args, asked) == [100, 24, 24]
    args = arguments(eval_iters=0)
    validation.take_over(args)
    assert validation.sizes(args, asked) == asked


def test_bytes_of_byte_level_tokens():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    sizes = token_bytes(fast)
    ids = fast(TEXT).input_ids + [fast.eos_token_id]
    assert sizes[ids].sum() == len(TEXT.encode()) and len(sizes) == len(fast)


def test_bytes_of_sentencepiece_tokens(sentencepiece_model):
    encoder = build_encoder("SentencePieceTokenizer", str(sentencepiece_model))
    model = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    sizes = token_bytes(model)
    text = "a dog is an animal"
    [ids] = encoder.encode([text])
    assert sizes[ids].sum() == len(text) + 1  # the leading space
    assert sizes[model.eos_id()] == 0 and not math.isnan(sizes.sum())


def test_tokenizer_that_cannot_tell():
    words = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    assert token_bytes(PreTrainedTokenizerFast(tokenizer_object=words)) is None
    assert token_bytes(object()) is None
