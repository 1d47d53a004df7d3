"""A HELM-MiCE of random weights with a tokenizer of characters, in Megatron and exported."""

from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from helm_megatron.conversion.source_model import SourceModel
from helm_megatron.conversion.to_hf import export
from tests.distributed import cases
from tests.hf.models import VOCABULARY, source

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .,:;-()'?\n"


def save_tokenizer(folder):
    vocabulary = {token: index for index, token in enumerate(["</s>", "<unk>", *CHARACTERS])}
    assert len(vocabulary) <= VOCABULARY
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    fast.save_pretrained(folder)


def exported(folder) -> SourceModel:
    """Export the model into `folder`; returns Megatron's side of it."""
    model = source(cases.MICE)
    export(model, folder, verify=False)
    save_tokenizer(folder)
    return model
