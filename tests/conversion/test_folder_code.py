"""Code of folders: whose it is, and that a stranger's is not run unasked."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helm_megatron.conversion import folder_code, generate
from helm_megatron.conversion.folder_code import code_files, foreign_code
from helm_megatron.conversion.hf_folder import load_model
from helm_megatron.errors import HelmError
from helm_megatron.evaluation import harness
from helm_megatron.evaluation.errors import EvaluationError
from helm_megatron.evaluation.model import check_trust, hf_folder
from helm_megatron.evaluation.own_model import OwnModel
from tests.conversion.tool import ROOT, load_tool, refused, run
from tests.evaluation.models import exported

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "hf"
    exported(folder)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "hf"))


def edit(folder, name="config.json", **fields):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def hostile(folder):
    """Code in every file that would leave a marker, if anything ran it."""
    marker = folder.parent / "ran"
    for path in code_files():
        with (folder / path.name).open("a") as code:
            code.write(f"\nopen({str(marker)!r}, 'w')\n")
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    return marker


def test_an_export_is_recognized(folder):
    assert foreign_code(folder) is None
    shutil.copy(code_files()[1], folder / code_files()[0].name)
    assert foreign_code(folder) is None, "mixed up, but each file is ours"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (hostile, "configuration_helm.py"),
        (lambda f: edit(f, auto_map={"AutoConfig": "evil.Config"}), "evil.Config"),
        (lambda f: edit(f, auto_map={"AutoConfig": "a/b--evil.Config"}), "a/b--evil.Config"),
        (
            lambda f: edit(f, "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "e.T"]}),
            "e.T",
        ),
        (lambda f: edit(f, "tokenizer_config.json", auto_map=["e.T", None]), "e.T"),
    ],
)
def test_a_strangers_code_is_named(change, named, folder):
    change(folder)
    assert named in foreign_code(folder)


def test_every_version_of_the_code_is_known():
    """All that git has of these files: folders with any of them need no flag."""
    names = [f"helm_megatron/hf/{path.name}" for path in code_files()]

    def git(*words):
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout

    if not (ROOT / ".git").exists() or git("rev-parse", "--is-shallow-repository") != "false\n":
        pytest.skip("no history")
    known = folder_code._EARLIER | {folder_code.sha256(path) for path in code_files()}
    log = git("log", "--format=", "--raw", "--no-abbrev", "HEAD", "--", *names)
    blobs = {line.split()[3] for line in log.splitlines() if line.startswith(":")} - {"0" * 40}
    assert blobs
    for blob in blobs:
        content = subprocess.run(
            ["git", "cat-file", "blob", blob], cwd=ROOT, capture_output=True, check=True
        ).stdout
        assert folder_code.hashlib.sha256(content).hexdigest() in known, blob


def test_tools_run_no_code_of_a_folder(folder, tmp_path, capsys):
    """Generate, analyze and evaluate of a HELM model take the project's own classes."""
    marker = hostile(folder)
    assert generate.generate(folder, ["a dog"], max_new_tokens=2, do_sample=False)
    analyze = load_tool("analyze_geometry.py")
    assert run(analyze, "--load", folder, "--output-dir", tmp_path / "out") is None
    capsys.readouterr()
    with hf_folder(folder, tmp_path):
        assert "it is not run" in capsys.readouterr().err
    options = harness.Options(["wordnet_hypernymy"], dtype="float32", limit=2, device="cpu")
    outcome = harness.run(folder, options, tmp_path / "log")
    assert outcome.results["results"]
    assert not marker.exists()


def test_another_models_code_needs_the_flag(folder):
    marker = hostile(folder)
    edit(folder, model_type="other", auto_map={"AutoConfig": "evil.Config"})
    with pytest.raises(EvaluationError, match="--trust-remote-code"):
        check_trust(folder)
    edit(folder, auto_map=None)
    (folder / "tokenizer_config.json").write_text("{}")
    check_trust(folder)
    assert not marker.exists()


def test_a_tokenizers_code_is_never_run(folder):
    marker = hostile(folder)
    edit(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]})
    edit(folder, "tokenizer_config.json", tokenizer_class="EvilTokenizer")
    said = run(load_tool("generate.py"), "--load", folder, "--prompt", "a")
    refused(said, folder / "none", "the tokenizer cannot be loaded")
    assert not marker.exists()


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


NAME = "model.layers.0.self_attn.o_proj.weight"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda t: t.pop(NAME), "lacks " + NAME),
        (lambda t: t.update(more=torch.ones(1)), "has more"),
        (lambda t: t.update({NAME: t[NAME][1:].clone()}), NAME + " has the shape"),
        (lambda t: t[NAME].view(-1)[3:4].fill_(torch.nan), NAME + " has values that are not"),
    ],
    ids=["missing", "unexpected", "shape", "nan"],
)
def test_tensors_that_are_not_the_models_are_refused(change, part, folder, tmp_path):
    change_tensors(folder, change)
    said = run(load_tool("generate.py"), "--load", folder, "--prompt", "a")
    refused(said, folder / "none", part)
    flags = ["--load", folder, "--output-dir", tmp_path / "out"]
    refused(run(load_tool("analyze_geometry.py"), *flags), folder / "none", part)
    with pytest.raises(HelmError, match=re.escape(part)):
        OwnModel(str(folder), device="cpu")


@pytest.mark.parametrize("trusted", [False, True])
def test_weights_that_are_no_numbers_in_models_of_others(trusted, folder, tmp_path):
    """Which lm-eval loads, or code of the folder."""
    edit(folder, model_type="other", auto_map=None)
    (folder / "tokenizer_config.json").write_text("{}")
    with hf_folder(folder, tmp_path, trust_remote_code=trusted):
        pass
    change_tensors(folder, lambda t: t[NAME].view(-1)[3:4].fill_(torch.inf))
    with (
        pytest.raises(HelmError, match=f"{NAME} has values that are not finite"),
        hf_folder(folder, tmp_path, trust_remote_code=trusted),
    ):
        pytest.fail("not refused")


def test_what_the_evaluating_process_refuses_is_said(folder, tmp_path):
    change_tensors(folder, lambda tensors: tensors.pop(NAME))
    options = harness.Options(["wordnet_hypernymy"], limit=1, device="cpu")
    with pytest.raises(EvaluationError, match=re.escape("lacks " + NAME)):
        harness.run(folder, options, tmp_path / "log")


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"residual_scale": -1.0}, "residual_scale is -1.0; it must be a finite number above 0"),
        ({"residual_scale": float("nan")}, "residual_scale is nan"),
        ({"curvature": "1"}, "curvature"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"num_hidden_layers": 9999, "moe_layers": None}, "too few for the 9999 layers"),
        ({"layer_curvatures": [1.0]}, "layer_curvatures must be a list of"),
        ({"moe_layers": [0, 2]}, "moe_layers must be a list of"),
        ({"geometry": "flat"}, "geometry"),
        ({"linear_bias": "no"}, "linear_bias"),
        ({"kv_lora_rank": 4, "v_head_dim": None}, "kv_lora_rank needs"),
        ({"num_experts_per_tok": 64}, "num_experts_per_tok 64 of"),
        ({"num_key_value_heads": 3}, "multiple of num_key_value_heads"),
        ({"hidden_size": 2**24, "intermediate_size": 2**24}, ""),
    ],
)
def test_impossible_settings_are_refused(fields, part, folder):
    edit(folder, **fields)
    said = run(load_tool("generate.py"), "--load", folder, "--prompt", "a")
    refused(said, folder / "none", part)


def test_load_model_is_the_export(made):
    assert not load_model(made).training
