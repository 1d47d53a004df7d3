"""tools/checkpoint/convert.py on checkpoints of pretrain_helm.py, and what it says to bad input."""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

from helm_megatron.checkpoint.files import read_index
from helm_megatron.conversion import generate, sources
from helm_megatron.conversion.hf_folder import load_tokenizer
from helm_megatron.conversion.to_hf import ConversionError
from helm_megatron.data.tokenizer_training import train_tokenizer
from helm_megatron.megatron_patches import checkpoint_hashes
from tests.conversion.tool import convert, load_tool, refused, run
from tests.pretrain.runs import MICE, ROOT

pytestmark = pytest.mark.usefixtures("one_process")

TRAIN = "--train-iters 4 --save-interval 4 --eval-iters 0 --hidden-dropout 0".split()
TRAIN += "--attention-dropout 0 --make-vocab-size-divisible-by 64 --lr-warmup-iters 0".split()


def to_hf(load, save, *flags):
    return convert("--from", "megatron", "--to", "hf", "--load", load, "--save", save, *flags)


def to_megatron(load, save, *flags):
    return convert("--from", "hf", "--to", "megatron", "--load", load, "--save", save, *flags)


@pytest.fixture(scope="module")
def trained(starter, tmp_path_factory):
    """A checkpoint of HELM-MiCE with a SentencePiece tokenizer, saved by two processes."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text((ROOT / "README.md").read_text())
    train_tokenizer([folder / "text.txt"], folder / "words", 400)
    tokenizer = ["--tokenizer-type", "SentencePieceTokenizer"]
    tokenizer += ["--tokenizer-model", folder / "words.model"]
    layout = ["--expert-model-parallel-size", "2"]
    flags = [*TRAIN, *MICE, *tokenizer, *layout, "--save", folder / "checkpoints"]
    starter.run(*flags, processes=2)
    return folder


@pytest.fixture(scope="module")
def exported(trained):
    assert to_hf(trained / "checkpoints", trained / "hf", "--max-shard-size", 1e-5) is None
    return trained / "hf"


def test_the_folder_needs_transformers_only(exported, tmp_path):
    """Loaded in a process that cannot import helm_megatron or megatron."""
    code = f"""
import sys
sys.modules["helm_megatron"] = sys.modules["megatron"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(exported)!r}, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained({str(exported)!r}, trust_remote_code=True)
batch = tokenizer(["The model", "A checkpoint of any layout"], padding=True, return_tensors="pt")
out = model.generate(**batch, max_new_tokens=5, do_sample=False)
print(len(tokenizer), model.config.vocab_size, out.shape[1] - batch.input_ids.shape[1])
"""
    env = os.environ | {"HF_MODULES_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path
    )
    assert done.stdout.split() == ["400", "400", "5"], done.stderr[-3000:]


def test_card(exported):
    card = (exported / "README.md").read_text()
    assert "| iteration | 4 |" in card and "| lr | 0.01 |" in card and "HELM-MiCE" in card


def test_generate(exported, trained):
    """A sample from the checkpoint is that from its export."""
    prompts = ["The model", "A checkpoint of any layout"]
    texts = []
    for load in (trained / "checkpoints", exported):
        with generate.as_hf_folder(load) as folder:
            texts.append(generate.generate(folder, prompts, max_new_tokens=8, do_sample=False))
    assert texts[0] == texts[1] and len(texts[0]) == 2
    with pytest.raises(ConversionError, match="--prompt is empty"):
        generate.generate(exported, ["a", ""])


def test_generate_command_line(exported, trained, capfd):
    """Prompts with their continuations and nothing else; one line about what is wrong."""
    tool, said = load_tool("generate.py"), []
    flags = ["--prompt", "The model", "A checkpoint", "--max-new-tokens", 6, "--temperature", 0]
    for load in (trained / "checkpoints", exported):
        capfd.readouterr()
        assert run(tool, "--load", load, *flags) is None
        said.append(capfd.readouterr())
    assert "model of type" not in said[1].err
    # Megatron's own lines come before those of the sample.
    assert said[0].out.endswith(said[1].out) and said[1].out.startswith("The model")
    assert "A checkpoint" in said[1].out
    refused(run(tool, "--load", "none", *flags), trained / "none", "none: no checkpoint")


@pytest.mark.parametrize(
    "bad",
    [
        *(["--top-p", value] for value in ("-1", "0", "1.5", "nan")),
        *(["--temperature", value] for value in ("-1", "nan", "inf")),
        *([flag, "-1"] for flag in ("--top-k", "--seed", "--max-new-tokens", "--num-beams")),
    ],
    ids="=".join,
)
def test_numbers_of_generate_that_cannot_be(bad, capsys):
    """Temperature -1 is not 0, top-p 1.5 not 1."""
    assert run(load_tool("generate.py"), "--load", "x", "--prompt", "a", *bad) == 2
    assert f"error: argument {bad[0]}: " in capsys.readouterr().err.splitlines()[-1]


def test_prompts_without_a_token_for_padding(exported, tmp_path, monkeypatch):
    """Each is continued as if it were alone."""
    prompts, options = ["The model", "A checkpoint of any layout"], {"do_sample": False}
    alone = [generate.generate(exported, [p], max_new_tokens=8, **options)[0] for p in prompts]
    shutil.copytree(exported, tmp_path / "hf")
    config = tmp_path / "hf" / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    assert settings.pop("pad_token") is not None
    config.write_text(json.dumps(settings))
    assert generate.generate(tmp_path / "hf", prompts, max_new_tokens=8, **options) == alone


def test_a_prompt_beyond_the_positions(exported):
    long = ["A checkpoint of any layout " * 40]
    with pytest.raises(ConversionError, match="--prompt has .* tokens, but the model .* positions"):
        generate.generate(exported, long, max_new_tokens=2)


def test_training_goes_on_from_an_imported_checkpoint(exported, trained, starter, tmp_path):
    """In another layout, by --use-checkpoint-args; its first loss is that of the source."""
    megatron = tmp_path / "megatron"
    assert to_megatron(exported, megatron, "--make-vocab-size-divisible-by", 64) is None
    words = ["--tokenizer-type", "SentencePieceTokenizer"]
    words += ["--tokenizer-model", trained / "words.model"]
    layout = "--tensor-model-parallel-size 2 --sequence-parallel".split()
    layout += ["--make-vocab-size-divisible-by", "32"]  # of which Megatron takes a multiple, by TP
    flags = [*TRAIN, *MICE, *words, "--exit-interval", 1]
    losses = [
        starter.run(*flags, *more, processes=processes)[1]
        for processes, more in (
            (1, ["--finetune", "--load", trained / "checkpoints"]),
            (2, [*layout, "--load", megatron]),
        )
    ]
    # Padded rows differ: they were trained a little, and are zero here.
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def damaged(folder, copy, change):
    shutil.copytree(folder, copy)
    change(copy)
    return copy


def shards(folder):
    return sorted(folder.glob("model-*.safetensors"))


def edit(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def rename(folder):
    """A Lorentz checkpoint that calls itself Euclidean."""
    edit(folder, geometry="euclidean")


def other_model(folder):
    (folder / "config.json").write_text('{"model_type": "gpt2"}')


def truncate(folder):
    with shards(folder)[1].open("r+b") as file:
        file.truncate(file.seek(0, 2) - 100)


def drop_tensor(folder):
    tensors = load_file(shards(folder)[0])
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, shards(folder)[0])


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda folder: shards(folder)[1].unlink(), ["model-00002-of-", "is missing"]),
        (truncate, ["model-00002-of-", "truncated or damaged"]),
        (drop_tensor, ["model-00001-of-", "lacks"]),
        (lambda folder: edit(folder, kv_lora_rank=8), ["has the shape", "config.json says"]),
        (rename, ["which its settings do not account for"]),
        (other_model, ["gpt2", "Llama-shaped"]),
        (lambda folder: (folder / "config.json").unlink(), ["config.json cannot be read"]),
    ],
    ids=["missing", "truncated", "tensor", "size", "geometry", "architecture", "config"],
)
def test_bad_hugging_face_folders(change, parts, exported, tmp_path):
    copy = damaged(exported, tmp_path / "copy", change)
    refused(to_megatron(copy, tmp_path / "out"), tmp_path / "out", *parts)


def test_bad_megatron_checkpoints(trained, tmp_path):
    def shard_gone(folder):
        next(folder.glob("iter_*/*.distcp")).unlink()

    copy = damaged(trained / "checkpoints", tmp_path / "copy", shard_gone)
    refused(to_hf(copy, tmp_path / "out"), tmp_path / "out", ".distcp is missing")
    refused(to_hf(tmp_path / "none", tmp_path / "out"), tmp_path / "out", "no checkpoint")
    said = to_hf(trained / "checkpoints", tmp_path / "out", "--tokenizer-model", "none.model")
    refused(said, tmp_path / "out", "none.model", "--tokenizer-model")


def flipped(path, position):
    """The file with one bit changed."""
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("hashed", [True, False])
def test_flipped_bits_of_a_checkpoint(hashed, trained, tmp_path):
    """With its hashes, anywhere; without, as older versions saved it, in the numbers."""
    folder = shutil.copytree(trained / "checkpoints", tmp_path / "copy") / "iter_0000004"
    manifest = folder / "integrity.json"
    assert set(json.loads(manifest.read_text())["files"]) == {
        path.name for path in folder.iterdir() if path.name not in (manifest.name, "metadata.json")
    }
    if not hashed:
        manifest.unlink()
    chance, where = random.Random(5), read_index(folder).storage_data
    [numbers, *_] = [where[key] for key in where if key.fqn.startswith("embedding.word")]
    for _ in range(8):
        if hashed:
            path = chance.choice(sorted(folder.glob("*.distcp")))
            position = chance.randrange(path.stat().st_size)
        else:
            path = folder / numbers.relative_path
            position = numbers.offset + chance.randrange(1000, numbers.length - 1000)
        before = path.read_bytes()
        flipped(path, position)
        refused(to_hf(tmp_path / "copy", tmp_path / "out"), tmp_path / "out", str(path), "damaged")
        path.write_bytes(before)
    assert to_hf(tmp_path / "copy", tmp_path / "out", "--no-verify") is None


def test_an_imported_checkpoint_has_hashes(exported, tmp_path):
    assert to_megatron(exported, tmp_path / "megatron", "--no-verify") is None
    release = tmp_path / "megatron" / "release"
    assert checkpoint_hashes.damaged(release) is None
    [shard] = release.glob("*.distcp")
    flipped(shard, 12345)
    said = to_hf(tmp_path / "megatron", tmp_path / "out")
    refused(said, tmp_path / "out", str(shard), "is damaged")


def test_weights_that_are_no_numbers(exported, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    tensors = load_file(shards(copy)[0])
    name = sorted(tensors)[0]
    tensors[name].view(-1)[3] = float("nan")
    save_file(tensors, shards(copy)[0])
    refused(to_megatron(copy, tmp_path / "out"), tmp_path / "out", "has NaN or Inf")


@pytest.mark.parametrize("size", [4000, 20_000])
def test_full_disk(size, trained, exported, tmp_path, small_disk):
    for tool, load in ((to_hf, trained / "checkpoints"), (to_megatron, exported)):
        with small_disk(size):
            said = tool(load, tmp_path / "out")
        refused(said, tmp_path / "out", str(tmp_path), "free some space")
        assert not list(tmp_path.iterdir())


def test_what_others_have_made_beside_it_is_kept(exported, tmp_path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "file").write_text("mine")
    assert to_megatron(exported, tmp_path / "out", "--no-verify") is None
    assert (tmp_path / ".out.partial" / "file").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_tokenizer_of_another_size_is_refused(trained, tmp_path):
    """It would cut the vocabulary; the embeddings are 448 rows for the 400 tokens."""
    train_tokenizer([trained / "text.txt"], tmp_path / "small", 384)
    flags = ["--tokenizer-model", tmp_path / "small.model"]
    said = to_hf(trained / "checkpoints", tmp_path / "out", *flags)
    refused(said, tmp_path / "out", "448 embeddings", "384 tokens", "not its own")


def test_special_tokens_agree(exported):
    """Between tokenizer, config and generation config; the model's length is the tokenizer's."""
    config = json.loads((exported / "config.json").read_text())
    generation = json.loads((exported / "generation_config.json").read_text())
    tokenizer = load_tokenizer(exported)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        wanted = getattr(tokenizer, name)
        assert config.get(name) == wanted and generation.get(name) == wanted
    assert tokenizer.eos_token_id is not None
    assert tokenizer.model_max_length == config["max_position_embeddings"]


def test_generation_without_a_pad_token(exported, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        fields = json.loads((copy / name).read_text())
        kept = {k: v for k, v in fields.items() if not k.startswith(("eos_token", "pad_token"))}
        (copy / name).write_text(json.dumps(kept))
    assert load_tokenizer(copy).pad_token is None
    prompts = ["The model", "A checkpoint of any layout"]
    options = dict(max_new_tokens=4, do_sample=False)
    together = generate.generate(copy, prompts, **options)
    alone = [generate.generate(copy, [prompt], **options)[0] for prompt in prompts]
    assert together == alone and len(together) == 2


def test_an_explicit_tokenizer_of_a_run_on_numbers(trained):
    args = argparse.Namespace(tokenizer_type="NullTokenizer", tokenizer_model=None)
    assert not sources.text_of(args, None).has_tokenizer
    words = str(trained / "words.model")
    text = sources.text_of(args, words)
    assert (text.tokenizer_type, text.model) == ("SentencePieceTokenizer", words)


def test_an_existing_folder_is_kept(trained, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "exists and is not empty" in to_hf(trained / "checkpoints", tmp_path)
    assert (tmp_path / "file").read_text() == "mine"
