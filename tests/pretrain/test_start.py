"""A run starts where its flags mean it to, and says so, or is refused before anything is built."""

import argparse
import json
import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp

from helm_megatron.checkpoint.start import find_start
from helm_megatron.errors import HelmError
from tests.pretrain.forked import Starter

TRACKER = "latest_checkpointed_iteration.txt"


def save(folder):
    folder.mkdir(parents=True)
    dcp.save({"weight": torch.ones(9)}, checkpoint_id=folder, no_dist=True)
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    for name in ("run/iter_0000002", "run/iter_0000004", "released/release"):
        save(folder / name)
    (folder / "run" / TRACKER).write_text("4")
    (folder / "released" / TRACKER).write_text("release\n")
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """Folders of checkpoints, below the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    for name, source in (("lost", "run"), ("renamed", "run/iter_0000002"), ("lone", "released")):
        shutil.copytree(made / source, tmp_path / name)
    for name in ("lost", "lone"):
        (tmp_path / name / TRACKER).unlink()
    shutil.copytree(made / "run/iter_0000004", tmp_path / "begun/iter_0000004")
    (tmp_path / "begun/iter_0000004/metadata.json").unlink()
    (tmp_path / "latest").symlink_to("run/iter_0000004")
    (tmp_path / "new").mkdir()
    (tmp_path / "huggingface").mkdir()
    (tmp_path / "huggingface/config.json").touch()
    return tmp_path


def start(**given):
    names = "load save ckpt_step pretrained_checkpoint non_persistent_ckpt_type".split()
    flags = dict.fromkeys(("finetune", "exit_on_missing_checkpoint", "skip_train"), False)
    return find_start(argparse.Namespace(**dict.fromkeys(names) | flags | given))


# Flags, the folder to load, and what Megatron gets in the place of what was given.
LOADED = [
    ({"load": "run"}, "run/iter_0000004", {}),
    ({"load": "run/", "save": "run"}, "run/iter_0000004", {}),
    ({"load": "run", "ckpt_step": 2, "save": "run"}, "run/iter_0000002", {}),
    ({"load": "run", "finetune": True, "save": "new"}, "run/iter_0000004", {}),
    ({"load": "run/iter_0000002"}, "run/iter_0000002", {"load": "run", "ckpt_step": 2}),
    ({"load": "run/iter_0000002", "ckpt_step": 2}, "run/iter_0000002", {"load": "run"}),
    ({"load": "run/iter_0000002/", "save": "run"}, "run/iter_0000002", {"load": "run"}),
    ({"load": "latest"}, "run/iter_0000004", {"load": "run", "ckpt_step": 4}),
    ({"load": "lost"}, "lost/iter_0000004", {"ckpt_step": 4}),
    ({"load": "lost", "save": "lost"}, "lost/iter_0000004", {"ckpt_step": 4}),
    ({"load": "lost", "ckpt_step": 2}, "lost/iter_0000002", {}),
    ({"load": "lost", "finetune": True}, "lost/iter_0000004", {"ckpt_step": 4}),
    ({"load": "released", "save": "released"}, "released/release", {}),
    ({"load": "released/release"}, "released/release", {"load": "released"}),
    ({"pretrained_checkpoint": "run"}, "run/iter_0000004", {}),
    (
        {"pretrained_checkpoint": "run/iter_0000002", "load": "new", "save": "new"},
        "run/iter_0000002",
        {"pretrained_checkpoint": "run", "ckpt_step": 2},
    ),
    (
        {"pretrained_checkpoint": "released", "load": "lost", "save": "lost"},
        "lost/iter_0000004",
        {"pretrained_checkpoint": None, "ckpt_step": 4},
    ),
]


@pytest.mark.parametrize(("given", "loaded", "settled"), LOADED)
def test_what_is_meant_is_loaded(folder, given, loaded, settled):
    found = start(**given)
    assert found.folder.resolve() == (folder / loaded).resolve()
    for name, value in settled.items():
        if name in ("load", "pretrained_checkpoint") and value:
            assert (folder / value).samefile(found.settled[name])
        else:
            assert found.settled[name] == value


@pytest.mark.parametrize("name", ["new", "not/yet/there", "begun"])
def test_a_new_run_says_so(folder, name):
    found = start(load=name, save=f"./{name}/")
    assert found.folder is None and f"no checkpoint in {name} yet" in found.says
    assert found.says.endswith(": starting anew") and "\n" not in found.says


def test_without_load_there_is_nothing_to_say(folder):
    assert start().says is None and start(save="new").says is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"load": "typo"}, "--load typo: there is no such folder; to start anew"),
        ({"load": "typo", "save": "new"}, "no such folder"),
        ({"load": "typo", "finetune": True}, "no such folder"),
        ({"load": "new", "save": "new", "finetune": True}, "--finetune: there is nothing to load"),
        ({"finetune": True}, "--finetune: .*--load is missing"),
        ({"load": "typo", "save": "typo", "ckpt_step": 2}, "--ckpt-step 2: there is nothing"),
        ({"load": "run", "ckpt_step": 0}, "count from 1"),
        ({"load": "run", "ckpt_step": -3}, "count from 1"),
        ({"load": "run/iter_0000009"}, "no such folder"),
        ({"load": "run/iter_0000002", "ckpt_step": 4}, "is another iteration"),
        ({"load": f"run/{TRACKER}"}, "is a file"),
        ({"load": "renamed"}, "renamed: is a checkpoint itself"),
        ({"load": "new"}, "new: holds no checkpoint"),
        ({"load": "begun"}, "begun: holds no whole checkpoint"),
        ({"load": "lone"}, f"lone: has a release, but no file {TRACKER}"),
        ({"load": "lone/release"}, "release: is a checkpoint itself"),
        ({"load": "huggingface"}, "folder of Hugging Face's"),
        ({"load": ""}, "--load: an empty name"),
        ({"save": " "}, "--save: an empty name"),
        ({"load": "new", "save": "new", "exit_on_missing_checkpoint": True}, "--exit-on-missing"),
        ({"pretrained_checkpoint": "typo"}, "--pretrained-checkpoint typo: there is no such"),
        ({"pretrained_checkpoint": "new", "load": "typo"}, "--load typo"),
    ],
)
def test_nothing_to_load_is_refused(folder, given, message):
    with pytest.raises(HelmError, match=message) as refusal:
        start(**given)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"load": "lost"},
        {"load": "run", "finetune": True},
        {"load": "run/iter_0000002", "finetune": True},
        {"pretrained_checkpoint": "run"},
        {"pretrained_checkpoint": "lost"},
    ],
)
def test_another_runs_tracker_is_not_overwritten(folder, given):
    with pytest.raises(HelmError, match="--save run: has checkpoints already, the last 4"):
        start(save="run", **given)


@pytest.mark.parametrize("content", [b"four", b"", b"\xff\xfe", b"-1", b"9" * 5000])
def test_damaged_tracker_is_named(folder, content):
    (folder / "run" / TRACKER).write_bytes(content)
    with pytest.raises(HelmError, match=f"{TRACKER} holds .*, not an iteration.*whole ones: 2, 4"):
        start(load="run")


def test_runs_go_on_or_end_with_one_line(tmp_path):
    """Megatron gets what the flags mean, and its checkpoints stay what they were."""
    starter = Starter(tmp_path)
    run, common = tmp_path / "run", ["--eval-iters", 0, "--save-interval", 2, "--lr-decay-iters", 9]
    flags = [*common, "--train-iters", 4]
    first = starter.start(*flags, "--save", run, "--load", run)
    assert first.join() == [0] and f"no checkpoint in {run} yet: starting anew" in first.output
    again = starter.run(*common, "--train-iters", 4, "--load", run / "iter_0000002")
    assert again == {i: first.losses[i] for i in (3, 4)}
    (run / TRACKER).unlink()
    lost = starter.start(*common, "--train-iters", 5, "--load", run, "--save", run)
    assert lost.join() == [0] and list(lost.losses) == [5]
    assert f"run has no {TRACKER}: its last whole checkpoint is iter_0000004" in lost.output
    (run / TRACKER).write_text("4")
    for given in (["--load", tmp_path / "typo", "--finetune"], ["--save", run]):
        codes, output = starter.refused(*flags, *given)
        assert codes == [2] and "Traceback" not in output and "parameters on" not in output
        assert len([line for line in output.splitlines() if "helm.py: error" in line]) == 1
    assert (run / TRACKER).read_text() == "4"
