"""examples/finetune_deepspeed: two processes with ZeRO 1, 2, 3 train what one does without it."""

import gzip
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from helm_megatron.conversion.to_hf import export
from helm_megatron.conversion.to_megatron import convert_folder
from tests.evaluation.models import save_tokenizer
from tests.hf import models

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "finetune_deepspeed"
CORPUS = ROOT / "examples" / "data" / "wordnet_glosses.jsonl.gz"
# Eight samples a step, from two processes or one. Eight tokens leave experts without work, not the
# same ones on both.
TRAINING = """
    --max_steps 5 --gradient_accumulation_steps 4 --sequence_length 8 --learning_rate 1e-2
    --weight_decay 0.1 --max_grad_norm 1 --logging_steps 1 --save_strategy no --report_to none
    --disable_tqdm true
""".split()
TORCHRUN = "-m torch.distributed.run --standalone --nproc-per-node 2".split()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_process"),
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None, reason="the extra `deepspeed` is missing"
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, one_process):
    """Holds an exported model of points and experts, `hf`, and a text."""
    folder = tmp_path_factory.mktemp("finetune")
    torch.manual_seed(0)
    export(models.source(models.MICE_LORENTZ), folder / "hf", verify=False)
    save_tokenizer(folder / "hf")
    with gzip.open(CORPUS, "rt") as lines:
        (folder / "text.jsonl").write_text("".join(itertools.islice(lines, 200)))
    return folder


def train(folder, name, *flags, launcher=()):
    """Run the script as its README says; returns the folder of the result."""
    command = [sys.executable, *launcher, EXAMPLE / "train.py", "--model", folder / "hf"]
    command += ["--text", folder / "text.jsonl", "--output_dir", folder / name, *TRAINING, *flags]
    offline = {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        list(map(str, command)),
        env=os.environ | offline,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = running.communicate(timeout=900)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == 0, output[-4000:]
    return folder / name


def train_in_two(folder, name, stage, *flags):
    """The same in two processes, with a stage of ZeRO."""
    flags = ["--deepspeed", EXAMPLE / f"zero{stage}.json", *flags]
    return train(folder, name, "--per_device_train_batch_size", 1, *flags, launcher=TORCHRUN)


@pytest.fixture(scope="module")
def plain(folder):
    """One process, torch's AdamW."""
    return train(folder, "plain", "--per_device_train_batch_size", 2)


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda stage: f"zero{stage}")
def tuned(request, folder):
    """Two processes with a stage of ZeRO."""
    return train_in_two(folder, f"zero{request.param}", request.param)


def losses(folder):
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in log if "loss" in entry]


def test_losses_are_those_of_one_process(plain, tuned):
    expected = losses(plain)
    assert len(expected) == 5 and min(expected[-2:]) < expected[0] - 0.2
    assert losses(tuned) == pytest.approx(expected, rel=1e-5)


def test_parameters_are_those_of_one_process(folder, plain, tuned):
    start, expected, found = (
        load_file(each / "model.safetensors") for each in (folder / "hf", plain, tuned)
    )
    assert found.keys() == expected.keys() == start.keys()
    for name, tensor in expected.items():
        way = (tensor - start[name]).abs().max()
        # Only Megatron moves the bias of the selection.
        assert way > 0 or name.endswith("e_score_correction_bias") or ".experts." in name, name
        assert (found[name] - tensor).abs().max() <= 1e-2 * way, name


def test_saved_model_loads_and_goes_back_to_megatron(plain, tuned, tmp_path):
    tokens = torch.arange(2 * 40).view(2, 40) % models.VOCABULARY
    one, other = (
        AutoModelForCausalLM.from_pretrained(each, trust_remote_code=True)
        for each in (plain, tuned)
    )
    with torch.no_grad():
        torch.testing.assert_close(other(tokens).logits, one(tokens).logits, rtol=1e-3, atol=1e-3)
    # Ends with a comparison of the logits of both.
    convert_folder(tuned, tmp_path / "megatron", divisible_by=models.PADDED)
    assert (tmp_path / "megatron" / "latest_checkpointed_iteration.txt").is_file()


def test_bf16(folder, plain, tmp_path):
    """Parameters are saved in bf16; the bias of the selection is left in fp32, to the bit."""
    tuned = train_in_two(folder, "bf16", 3, "--bf16")
    assert losses(tuned) == pytest.approx(losses(plain), rel=0.05)
    start, found = (load_file(each / "model.safetensors") for each in (folder / "hf", tuned))
    for name, tensor in found.items():
        if name.endswith("e_score_correction_bias"):
            assert torch.equal(tensor, start[name])
        else:
            assert tensor.dtype == torch.bfloat16, name
    convert_folder(tuned, tmp_path / "megatron", divisible_by=models.PADDED)
