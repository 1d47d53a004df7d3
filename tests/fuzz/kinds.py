"""Files that a user may have damaged: for each kind how a whole one is made, and what reads it.

`read` returns where the file can be used as it is, or where it is said what is wrong with it.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from helm_megatron.checkpoint import files
from helm_megatron.conversion.hf_folder import read_config
from helm_megatron.conversion.release.files import read_release
from helm_megatron.conversion.tensor_files import TensorFiles
from helm_megatron.data.encoders import build_encoder
from helm_megatron.data.indexed import read_index, write_index
from helm_megatron.data.sidecar import FORMAT, read_sidecar, write_sidecar
from helm_megatron.data.tokenizer_training import train_tokenizer
from helm_megatron.data.training.blend import prefixes_of
from helm_megatron.data.verification import index_problems
from helm_megatron.evaluation.model import check_tokenizer
from helm_megatron.hf.configuration_helm import HelmConfig
from helm_megatron.megatron_patches.checkpoint_hashes import write_manifest
from tests.evaluation.models import save_tokenizer

README = Path(__file__).parents[2] / "README.md"


def idx(folder):
    path, lengths = folder / "a.idx", np.arange(1, 20, dtype=np.int32)
    with path.open("wb") as stream:
        write_index(stream, np.dtype("<u2"), lambda: [lengths], lambda: [np.arange(20)])
    return path, lambda: list(index_problems(read_index(path)))


def sidecar(folder):
    path = folder / "a.json"
    tokenizer = {"type": "T", "model": "m", "fingerprint": "0", "vocab_size": 5, "eod": 0}
    counts = {"documents": 1, "sequences": 1, "tokens": 2}
    content = {"format": FORMAT, "tokenizer": tokenizer, "counts": counts}
    write_sidecar(path, content | {"files": {"bin": {"bytes": 4}, "idx": {"bytes": 50}}})
    assert read_sidecar(folder / "a")
    return path, lambda: read_sidecar(folder / "a")


def config(folder):
    HelmConfig().save_pretrained(folder)
    return folder / "config.json", lambda: read_config(folder)


def safetensors(folder):
    save_file({"a": torch.ones(3, 4), "b": torch.zeros(7)}, folder / "model.safetensors")
    return folder / "model.safetensors", lambda: read_all(TensorFiles(folder))


def safetensors_index(folder):
    save_file({"a": torch.ones(3, 4)}, folder / "one.safetensors")
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": {"a": "one.safetensors"}}))
    return path, lambda: read_all(TensorFiles(folder))


def read_all(tensors):
    return [
        (tensors.dtype(name), tensors.shape(name), tensors.read(name)) for name in tensors.names()
    ]


def released(folder):
    torch.save({"model_state_dict": {"a.weight": torch.ones(40, 5)}}, folder / "Step1.pt")
    return folder / "Step1.pt", lambda: read_release(folder / "Step1.pt")


def checkpoint(folder):
    dcp.save({"weight": torch.ones(100)}, checkpoint_id=folder, no_dist=True)
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))
    return folder


def checkpoint_index(folder):
    checkpoint(folder)
    return folder / ".metadata", lambda: files.damage(folder)


def checkpoint_metadata(folder):
    checkpoint(folder)
    return folder / "metadata.json", lambda: files.damage(folder)


def hashes(folder):
    write_manifest(checkpoint(folder), {})
    return folder / "integrity.json", lambda: (files.damage(folder), files.check_hashes(folder))


def tracker(folder):
    path = folder / "latest_checkpointed_iteration.txt"
    path.write_text("10")
    args = argparse.Namespace(load=str(folder), pretrained_checkpoint=None, ckpt_step=None)
    return path, lambda: files.folder_to_load(args)


def blend(folder):
    for name in ("a.bin", "a.idx", "b.bin", "b.idx"):
        (folder / name).touch()
    path = folder / "blend.txt"
    path.write_text(f"0.5 {folder}/a 0.5 {folder}/b\n")
    names = "data_path train_data_path valid_data_path test_data_path per_split_data_args_path"
    args = argparse.Namespace(**dict.fromkeys(names.split()), data_args_path=str(path))
    return path, lambda: prefixes_of(args)


def tokenizer(folder):
    save_tokenizer(folder)
    (folder / "config.json").write_text('{"vocab_size": 100}')
    return folder / "tokenizer.json", lambda: check_tokenizer(folder)


def sentencepiece(folder):
    shutil.copy(README, folder / "text.txt")
    train_tokenizer([folder / "text.txt"], folder / "t", 400)
    path = folder / "t.model"
    return path, lambda: build_encoder("SentencePieceTokenizer", str(path))


ALL = [
    idx, sidecar, config, safetensors, safetensors_index, released, checkpoint_index,
    checkpoint_metadata, hashes, tracker, blend, tokenizer, sentencepiece,
]  # fmt: skip
