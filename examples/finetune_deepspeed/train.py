#!/usr/bin/env python
"""Fine-tune an exported HELM model with Hugging Face's Trainer and DeepSpeed's ZeRO.

Every option of transformers' TrainingArguments is one of this script's. Without --deepspeed and
torchrun it trains in one process.

Example:
    torchrun --nproc-per-node 8 examples/finetune_deepspeed/train.py --model hf \
        --text corpus.jsonl --output_dir tuned --deepspeed examples/finetune_deepspeed/zero2.json \
        --bf16 --learning_rate 1e-5 --num_train_epochs 1
"""

import os
import sys
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset, load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from helm_megatron.conversion.folder_code import foreign_code


@dataclass
class Data:
    """What is trained, and on what."""

    model: Path = field(metadata={"help": "folder of tools/checkpoint/convert.py --to hf"})
    text: Path = field(metadata={"help": ".jsonl or .jsonl.gz with a `text` a line, or plain text"})
    sequence_length: int | None = field(
        default=None, metadata={"help": "tokens of a sample (default: the model's longest)"}
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "run the folder's code, though helm_megatron did not write it"},
    )


class HelmTrainer(Trainer):
    """Decays what `pretrain_helm.py` decays: the matrices of linears, with their time weights.

    Trainer's own rule would pull curvatures, temperatures and residual weights to zero.
    """

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Names of these parameters; under ZeRO 3 only `ds_shape` knows their shapes."""
        shapes = {n: getattr(p, "ds_shape", p.shape) for n, p in model.named_parameters()}
        return [n for n, s in shapes.items() if len(s) > 1 or n.endswith("time_weight")]


def samples(text: Path, tokenizer: PreTrainedTokenizerBase, length: int) -> Dataset:
    """Documents one after the other, each ended by the tokenizer's end, cut into equal samples.

    What is left over of every thousand documents is dropped.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def cut(documents: dict[str, list]) -> dict[str, list]:
        encoded = tokenizer(documents["text"], add_special_tokens=False).input_ids
        ids = list(chain.from_iterable(document + end for document in encoded))
        whole = [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]
        return {"input_ids": whole, "labels": whole}

    kind = "json" if ".jsonl" in text.suffixes else "text"
    documents = load_dataset(kind, data_files=str(text), split="train")
    return documents.map(cut, batched=True, remove_columns=documents.column_names)


def use_gloo() -> None:
    """Without GPUs: Accelerate knows no backend for DeepSpeed then, and counts one process."""
    import deepspeed.ops

    # Or DeepSpeed compiles for a minute what only inference uses.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(backend="gloo")
    sys.argv += ["--use_cpu", "--accelerator_config", '{"use_configured_state": true}']


def main() -> None:
    """Train, and save the model in the format that it came in."""
    with_deepspeed = any(flag.split("=")[0] == "--deepspeed" for flag in sys.argv)
    if with_deepspeed and "RANK" in os.environ and not torch.cuda.is_available():
        use_gloo()
    data, options = HfArgumentParser((Data, TrainingArguments)).parse_args_into_dataclasses()
    for path in (data.model, data.text):
        if not path.exists():
            sys.exit(f"error: {path}: no such file or folder")
    stranger = foreign_code(data.model)
    if stranger is not None and not data.trust_remote_code:
        sys.exit(
            f"error: {data.model} has code that helm_megatron did not export ({stranger}); "
            "read it, then pass --trust_remote_code to run it"
        )
    tokenizer = AutoTokenizer.from_pretrained(data.model, trust_remote_code=True)
    # With --bf16 DeepSpeed casts the parameters itself, and keeps copies in fp32.
    model = AutoModelForCausalLM.from_pretrained(
        data.model, trust_remote_code=True, dtype=torch.float32
    )
    length = data.sequence_length or model.config.max_position_embeddings
    with options.main_process_first(desc="tokenizing"):
        dataset = samples(data.text, tokenizer, length)
    if not len(dataset):
        sys.exit(f"error: {data.text}: fewer than the {length} tokens of --sequence_length")
    trainer = HelmTrainer(
        model=model,
        args=options,
        train_dataset=dataset,
        data_collator=default_data_collator,
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=options.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    # Or a rank that ends while another writes may abort.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
