"""Files that a user may have damaged: for each kind how a whole one is made, and what reads it.

`read` returns where the file can be used as it is, or where it is said what is wrong with it.
"""

import argparse
import contextlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint import DefaultSavePlanner

from helm_megatron.checkpoint import compatibility, failures, files
from helm_megatron.conversion import generate, settings, sources
from helm_megatron.conversion.generation_config import read_generation_config
from helm_megatron.conversion.hf_folder import load_model, load_tokenizer, read_config
from helm_megatron.conversion.release.arguments import PRESETS
from helm_megatron.conversion.release.files import read_release
from helm_megatron.conversion.stored import StoredParameters
from helm_megatron.conversion.tensor_files import TensorFiles
from helm_megatron.data.encoders import build_encoder
from helm_megatron.data.errors import DataError
from helm_megatron.data.indexed import read_index, write_index
from helm_megatron.data.sidecar import read_sidecar, write_sidecar
from helm_megatron.data.tokenizer_training import train_tokenizer
from helm_megatron.data.training.blend import prefixes_of
from helm_megatron.data.verification import index_problems, problems
from helm_megatron.evaluation.model import check_tokenizer
from helm_megatron.hf.configuration_helm import HelmConfig
from helm_megatron.megatron_patches.checkpoint_hashes import hash_of, write_manifest
from helm_megatron.plan import recipe as recipes
from helm_megatron.plan import shell
from helm_megatron.plan.layout import Layout
from helm_megatron.study import config as studies
from helm_megatron.study import queue
from tests.evaluation.models import exported, save_tokenizer

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
# Of a HELM-MiCE that the authors' code could have trained.
RELEASED = PRESETS["mice_120m"] | dict(
    dim=13, inter_dim=21, mice_inter_dim=11, n_layers=2, n_heads=2, kv_lora_rank=6
)
RELEASED |= dict(qk_nope_head_dim=5, qk_rope_head_dim=5, v_head_dim=5, curvatures=[1.0, 1.0, 1.0])
COMMON = {"args": argparse.Namespace(geometry="lorentz", hidden_size=64), "iteration": 7}
SIDECAR = {
    "tokenizer": {"type": "T", "model": "m", "fingerprint": "0", "vocab_size": 99, "eod": 0},
    "counts": {"documents": 1, "sequences": 1, "tokens": 2},
}


def idx(folder):
    path, lengths = folder / "a.idx", np.arange(1, 20, dtype=np.int32)
    with path.open("wb") as stream:
        write_index(stream, np.dtype("<u2"), lambda: [lengths], lambda: [np.arange(20)])
    return path, lambda: one_of(index_problems(read_index(path)))


def bin(folder):
    """The tokens of a dataset, which its sidecar has the hash of."""
    path, sizes = folder / "a.bin", np.arange(1, 9, dtype=np.int32)
    path.write_bytes(np.arange(sizes.sum(), dtype="<u2").tobytes())
    with (folder / "a.idx").open("wb") as stream:
        write_index(stream, np.dtype("<u2"), lambda: [sizes], lambda: [np.arange(9)])
    files = {"bin": described(path), "idx": described(folder / "a.idx")}
    write_sidecar(folder / "a.json", SIDECAR | {"files": files})
    return path, lambda: one_of(problems(folder / "a"))


def described(path):
    return {"bytes": path.stat().st_size, "sha256": hash_of(path)}


def one_of(found):
    """As training does with --check-data: the first problem ends it."""
    for problem in found:
        raise DataError(problem)


def sidecar(folder):
    path = folder / "a.json"
    write_sidecar(path, SIDECAR | {"files": {"bin": {"bytes": 4}, "idx": {"bytes": 50}}})
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


def release_config(folder):
    """The arguments of a released model, whose tensors are sound."""
    path, rows = folder / "config.json", 50
    path.write_text(json.dumps(RELEASED))
    state = {f"manifold_{name}.k": torch.tensor(1.0) for name in ("in", "hidden", "out")}
    known = state | {"head.weight": torch.ones(rows, RELEASED["dim"])}
    model = sources._released_model(path, known, RELEASED, torch.float32)
    shapes = sources._released_shapes(model.transformer, settings.hf_config(model, rows))
    state |= {name: torch.ones(shape) for name, shape in shapes.items()}
    torch.save({"model_state_dict": state}, folder / "Step1.pt")
    return path, lambda: sources.release(folder / "Step1.pt", path).config


def checkpoint(folder, **state):
    state, whole = (
        state or {"weight": torch.ones(100)},
        DefaultSavePlanner(flatten_state_dict=False),
    )
    dcp.save(state, checkpoint_id=folder, planner=whole, no_dist=True)
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))
    return folder


def checkpoint_index(folder):
    checkpoint(folder)
    return folder / ".metadata", lambda: files.check_whole(folder)


def checkpoint_metadata(folder):
    checkpoint(folder)
    return folder / "metadata.json", lambda: files.check_whole(folder)


def shard(folder):
    """Of a checkpoint that an older version saved, without hashes."""
    checkpoint(folder)
    return folder / "__0_0.distcp", lambda: read_all(StoredParameters(folder))


def hashed_shard(folder):
    path = checkpoint(folder) / "__0_0.distcp"
    write_manifest(folder, {path.name: hash_of(path)})
    return path, lambda: read_all(StoredParameters(folder))


def legacy(folder):
    """A file of Megatron's format with one for each rank, which Megatron loads itself."""
    path = folder / "mp_rank_00" / "model_optim_rng.pt"
    path.parent.mkdir()
    torch.save({"weight": torch.ones(40, 5), "iteration": 7}, path)

    def read():
        files.check_whole(folder)
        try:
            return torch.load(path, weights_only=True)
        except Exception as error:  # pretrain_helm.py ends in one line too
            raise files.CheckpointError(failures.reason(error)) from error

    return path, read


def common_state(folder):
    """What a checkpoint has besides its tensors, in a file of its own as of an older Megatron."""
    checkpoint(folder)
    torch.save(COMMON, folder / "common.pt")
    return folder / "common.pt", lambda: compatibility.common_state(folder)


def common_state_in_shard(folder):
    checkpoint(folder, **{files.COMMON_STATE: [COMMON]})
    return folder / "__0_0.distcp", lambda: compatibility.common_state(folder)


def hashes(folder):
    write_manifest(checkpoint(folder), {})
    return folder / "integrity.json", lambda: (
        files.check_whole(folder),
        files.check_hashes(folder),
    )


def tracker(folder):
    path = folder / "latest_checkpointed_iteration.txt"
    path.write_text("10")
    args = argparse.Namespace(load=str(folder), pretrained_checkpoint=None, ckpt_step=None)
    return path, lambda: files.folder_to_load(args)


def blend(folder):
    path = folder / "blend.txt"
    path.write_text(f"0.5 {folder}/a 0.5 {folder}/b\n")
    return path, lambda: prefixes_of(data_flags(folder, data_args_path=str(path)))


def blends_by_split(folder):
    path = folder / "blends.json"
    path.write_text(
        json.dumps({"train": ["0.5", f"{folder}/a", "1", f"{folder}/b"], "valid": None})
    )
    return path, lambda: prefixes_of(data_flags(folder, per_split_data_args_path=str(path)))


def data_flags(folder, **given):
    for name in ("a.bin", "a.idx", "b.bin", "b.idx"):
        (folder / name).touch()
    names = "data_path train_data_path valid_data_path test_data_path data_args_path".split()
    unset = dict.fromkeys([*names, "per_split_data_args_path"])
    return argparse.Namespace(**unset | given)


def tokenizer(folder):
    save_tokenizer(folder)
    (folder / "config.json").write_text('{"vocab_size": 100}')

    def read():
        check_tokenizer(folder)
        build_encoder("HuggingFaceTokenizer", str(folder)).encode(["a dog"])
        load_tokenizer(folder)("a dog")

    return folder / "tokenizer.json", read


def sentencepiece(folder):
    shutil.copy(README, folder / "text.txt")
    train_tokenizer([folder / "text.txt"], folder / "t", 400)
    path = folder / "t.model"
    return path, lambda: build_encoder("SentencePieceTokenizer", str(path))


def generation_config(folder):
    exported(folder)
    path = folder / "generation_config.json"
    more = dict(do_sample=False, temperature=0.7, top_k=5, top_p=0.9, repetition_penalty=1.1)
    more |= dict(max_length=20, num_beams=1, num_return_sequences=1, eos_token_id=[0, 1])
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    model, words = load_model(folder), load_tokenizer(folder)

    def read():
        model.generation_config = read_generation_config(folder, model.config)
        return generate.continuations(model, words, ["a dog"], {"max_new_tokens": 2})

    return path, read


def study(folder):
    """Read as far as the commands of its runs, of each size."""
    path = folder / "study.toml"
    shutil.copy(ROOT / "examples" / "studies" / "curvature.toml", path)
    os.environ |= {"DATA": "data", "TOKENIZER": "tokenizer"}

    def read():
        for size in (None, "8gpus"):
            found = studies.read(path, size)
            runs = [*found.selections(), *found.reports()]
            jobs = [queue.job(found, run, 1e-3, folder / "out") for run in runs]
            assert all(job.folder.resolve().is_relative_to(folder / "out") for job in jobs)
            assert not any("\0" in word for job in jobs for word in job.command)

    return path, read


def recipe(folder):
    """Read as far as the layout that it has; no program is there for it to run but bash."""
    path = folder / "recipe.sh"
    shutil.copy(ROOT / "examples" / "tiny_mice.sh", path)
    (folder / "bin").mkdir()
    (folder / "bin" / "bash").symlink_to(shutil.which("bash"))
    variables = {"PATH": str(folder / "bin"), "GPUS": "8"}

    def read():
        with contextlib.chdir(folder):
            flags = shell.read(path, variables)
        return Layout.of(recipes.validate(recipes.parse(flags), 4))

    return path, read


ALL = [
    idx, bin, sidecar, config, generation_config, safetensors, safetensors_index, released,
    release_config, shard, hashed_shard, checkpoint_index, checkpoint_metadata, common_state,
    common_state_in_shard, legacy, hashes, tracker, blend, blends_by_split, tokenizer,
    sentencepiece, study, recipe,
]  # fmt: skip
# Of these a checksum tells every change: what is read is what was written, or nothing is.
CHECKED = [bin, released, legacy, shard, hashed_shard, common_state, common_state_in_shard]
