"""tools/analyze_geometry.py on exported models, and what it observes in them."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

from helm_megatron.analysis.activations import observe
from helm_megatron.analysis.words import WordsError, read_words
from helm_megatron.commands.analyze_geometry import names_of
from tests import forked
from tests.conversion.tool import load_tool, run
from tests.distributed import cases
from tests.evaluation import models as with_tokenizer
from tests.hf import models

ROOT = Path(__file__).parents[2]
WORDS = ROOT / "examples" / "data" / "animals.tsv"


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("case", [cases.MICE, models.MICE_TWIN], ids=lambda case: case.name)
def test_observed(case, tmp_path):
    model = models.exported(tmp_path, case)
    if case is cases.MICE:
        with torch.no_grad():  # as raw as AdamW may leave it
            model.model.layers[1].mlp.experts[0].curvature.fill_(-20)
    found = observe(model, torch.randint(models.VOCABULARY, (2, 20)))
    assert list(found.loads) == [2]
    assert len(found.loads[2]) == 4 and found.loads[2].sum().item() == pytest.approx(1)
    if case is models.MICE_TWIN:
        assert not found.times and not found.curvatures
        return
    layers = model.config.num_hidden_layers
    assert len(found.times) == layers + 1
    assert all((t >= model.config.curvature**0.5).all() and len(t) == 40 for t in found.times)
    raw = torch.cat([expert.curvature for expert in model.model.layers[1].mlp.experts])
    assert torch.allclose(found.curvatures[2], raw.exp().log1p().clamp(1e-3, 1e3))


def analyze(*flags):
    return forked.command(ROOT / "tools" / "analyze_geometry.py", *flags)


@pytest.mark.usefixtures("one_process")
def test_page_has_everything(tmp_path):
    with_tokenizer.exported(tmp_path / "hf")
    done = analyze(
        *("--load", tmp_path / "hf", "--output-dir", tmp_path / "out"),
        *("--words", WORDS, "--samples", 20),
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "index.html").read_text()
    pictures = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert "disk.png" in pictures and page.count("<img") == len(pictures)
    numbers = json.loads((tmp_path / "out" / "numbers.json").read_text())
    assert all(name in page and value in page for name, value in numbers.items())
    assert "layer 2: median and largest time" in numbers
    assert {"ricci.png", "ranks.png", "norms_wordnet.png", "norms_science.png"} <= set(pictures)


@pytest.mark.usefixtures("one_process")
def test_two_models_side_by_side(tmp_path):
    with_tokenizer.exported(tmp_path / "helm")
    twin = models.exported(tmp_path / "twin", models.MICE_TWIN)
    with_tokenizer.save_tokenizer(tmp_path / "twin")
    out = tmp_path / "out"
    flags = ["--load", tmp_path / "helm", tmp_path / "twin", "--output-dir", out, "--samples", 20]
    groups = tmp_path / "mine.tsv"
    groups.write_text("generic\tthing\ngeneric\tmatter\nspecific\tlion\nspecific\ttiger\n")
    done = analyze(*flags, "--word-groups", groups)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((out / "numbers.json").read_text())
    assert list(numbers) == ["helm", "twin"]
    assert "layer 1: median and largest time" not in numbers["twin"]
    assert f"layer {twin.config.num_hidden_layers}: effective rank of the states" in numbers["twin"]
    assert any(name.startswith("words, mine, specific") for name in numbers["twin"])
    page = (out / "index.html").read_text()
    assert "<th>helm</th><th>twin</th>" in page
    # Two panels where both have something to show, one where only the HELM has.
    sizes = {name: plt.imread(out / f"{name}.png").shape for name in ("radii", "times", "ranks")}
    assert sizes["radii"][1] == sizes["ranks"][1] == 2 * sizes["times"][1]


def test_names_of_models():
    name = names_of
    assert name([Path("runs/helm")]) == ["helm"]
    assert name([Path("runs/helm/checkpoints"), Path("runs/twin/checkpoints")]) == ["helm", "twin"]
    assert name([Path("runs/a/b/c"), Path("runs/b/b/c")]) == ["a", "b"]
    assert name([Path("runs"), Path("runs/iter_7")]) == ["runs", "iter_7"]


@pytest.mark.parametrize("number", [2, 3])
def test_not_two_models(number, tmp_path):
    loads = ["--load", *[tmp_path] * number]
    assert run(load_tool("analyze_geometry.py"), *loads, "--output-dir", tmp_path / "out") == (
        "error: --load takes one model, or two different ones"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("one_process")
def test_full_disk_leaves_no_page(tmp_path, small_disk):
    with_tokenizer.exported(tmp_path / "hf")
    flags = ["--load", tmp_path / "hf", "--output-dir", tmp_path / "out", "--samples", 20]
    for size in (4000, 60_000):  # too small for a picture, for the page
        with small_disk(size):
            said = run(load_tool("analyze_geometry.py"), *flags)
        assert said.startswith("error: ") and said.endswith("free some space"), said
        assert not list((tmp_path / "out").iterdir())


def test_no_model(tmp_path):
    done = analyze("--load", tmp_path / "nothing", "--output-dir", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: --load {tmp_path}/nothing: no such folder"


def test_words(tmp_path):
    words = read_words(WORDS)
    assert (words.names.index("terrier"), words.names.index("dog")) in words.edges
    file = tmp_path / "words"
    file.write_text("a\tb\nc\nd\n")
    with pytest.raises(WordsError, match="'b' is a parent"):
        read_words(file)


def test_files_are_read_before_models(tmp_path):
    """Which may take minutes to be converted."""
    flags = ["--load", tmp_path / "nothing", "--output-dir", tmp_path / "out"]
    said = run(load_tool("analyze_geometry.py"), *flags, "--word-groups", tmp_path / "missing.tsv")
    assert said.startswith(f"error: --word-groups {tmp_path}/missing.tsv: ")
    assert not (tmp_path / "out").exists()
