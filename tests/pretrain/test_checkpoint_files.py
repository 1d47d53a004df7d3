"""What is wrong with a checkpoint is found before it is loaded; reading one runs no code."""

import argparse
import json
import os
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader

from helm_megatron.checkpoint import compatibility, files
from helm_megatron.megatron_patches import checkpoint_index
from helm_megatron.megatron_patches.checkpoint_hashes import HashedFile, hash_of


def save(folder, planner=None, **state):
    folder.mkdir(parents=True)
    state = state or {"weight": torch.ones(100)}
    dcp.save(state, checkpoint_id=folder, planner=planner, no_dist=True)
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))
    return folder


@pytest.fixture
def folder(tmp_path):
    """The newer of two checkpoints, that the tracker names."""
    save(tmp_path / "iter_0000002")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("4")
    return save(tmp_path / "iter_0000004")


def args_for(folder, **changes):
    values = {"load": str(folder.parent), "pretrained_checkpoint": None, "ckpt_step": None}
    return argparse.Namespace(**values | changes)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


DAMAGE = {
    "truncated shard": ("__0_0.distcp", truncate),
    "missing shard": ("__0_0.distcp", os.unlink),
    "truncated index": (".metadata", truncate),
    "empty index": (".metadata", lambda path: os.truncate(path, 0)),
    "missing index": (".metadata", os.unlink),
    "not finished": ("metadata.json", os.unlink),
    "truncated json": ("metadata.json", truncate),
}


def test_whole_checkpoint_passes(folder):
    files.check_whole(files.folder_to_load(args_for(folder)))


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_names_the_file_and_the_older_checkpoint(folder, kind):
    name, damage = DAMAGE[kind]
    damage(folder / name)
    with pytest.raises(files.CheckpointError) as refusal:
        files.check_whole(files.folder_to_load(args_for(folder)))
    message = str(refusal.value)
    assert str(folder / name) in message and "--ckpt-step 2" in message
    assert "\n" not in message
    files.check_whole(files.folder_to_load(args_for(folder, ckpt_step=2)))


def test_missing_folder_is_named(folder):
    with pytest.raises(files.CheckpointError, match="iter_0000007 is missing"):
        files.check_whole(files.folder_to_load(args_for(folder, ckpt_step=7)))


@pytest.mark.parametrize("text", ["", "four"])
def test_tracker_without_an_iteration_is_refused(folder, text):
    tracker = folder.parent / "latest_checkpointed_iteration.txt"
    tracker.write_text(text)
    with pytest.raises(files.CheckpointError, match="latest_checkpointed_iteration.txt.*2, 4"):
        files.folder_to_load(args_for(folder))


def test_nothing_to_load(tmp_path):
    assert files.folder_to_load(args_for(tmp_path / "iter_0000001")) is None
    assert files.folder_to_load(args_for(tmp_path, load=None)) is None


class Hostile:
    """Unpickling it would make a folder."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_index_runs_no_code(folder, tmp_path):
    checkpoint_index.apply()
    (folder / ".metadata").write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    assert "names posix.mkdir" in files.damage(folder)
    with pytest.raises(pickle.UnpicklingError):
        FileSystemReader(folder).read_metadata()
    assert not (tmp_path / "ran").exists()


def test_values_run_no_code(tmp_path, monkeypatch):
    folder = save(tmp_path / "iter_0000001", value=Hostile(tmp_path / "ran"))
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    checkpoint_index.apply()
    with pytest.raises(BaseException, match="posix.mkdir"):
        dcp.load({"value": None}, checkpoint_id=folder, no_dist=True)
    assert not (tmp_path / "ran").exists()


def test_hashes_of_files_in_every_way_of_writing(tmp_path):
    """Small parts and large ones; of memory that lives on, and of some that is used again."""
    kept, data = torch.randn(1 << 18), bytearray(1 << 20)
    with HashedFile(tmp_path / "file") as file:
        file.keep(kept)
        for number in range(20):
            torch.save(kept, file)
            data[:] = bytes([number]) * len(data)
            file.write(data)
            file.write(bytes([number]))
    assert file.digest() == hash_of(tmp_path / "file")


def test_a_flipped_bit_of_a_legacy_checkpoint_is_found(tmp_path):
    part = tmp_path / "iter_0000001" / "mp_rank_00_001"
    part.mkdir(parents=True)
    torch.save({"seed": "0123456789"}, part / "model_optim_rng.pt")
    files.check_whole(part.parent)
    content = (part / "model_optim_rng.pt").read_bytes().replace(b"0123456789", b"0123456788")
    (part / "model_optim_rng.pt").write_bytes(content)
    files.check_whole(part.parent, rank=1, ranks=2)  # no share of one file
    with pytest.raises(files.CheckpointError, match="mp_rank_00_001/model_optim_rng.pt is damaged"):
        files.check_whole(part.parent, rank=0, ranks=2)


@pytest.mark.parametrize("where", ["common.pt", "__0_0.distcp"])
def test_a_flipped_bit_of_the_arguments_is_found(tmp_path, where):
    """Always, without hashes too: they would be those of another run."""
    alone = where == "common.pt"
    state = {} if alone else {files.COMMON_STATE: [{"seed": "0123456789"}]}
    folder = save(tmp_path / "iter_0000001", DefaultSavePlanner(flatten_state_dict=False), **state)
    if alone:
        torch.save({"seed": "0123456789"}, folder / where)
    assert compatibility.common_state(folder)["seed"] == "0123456789"
    content = (folder / where).read_bytes().replace(b"0123456789", b"0123456788")
    (folder / where).write_bytes(content)
    with pytest.raises(files.CheckpointError, match=f"{where}.* is damaged"):
        compatibility.common_state(folder)
