"""Norms of words and effective rank against direct computations."""

import pytest
import torch

from helm_megatron.analysis.states import GROUPS, effective_rank, read_groups, word_norms
from helm_megatron.analysis.words import WordsError
from helm_megatron.conversion.hf_folder import load_model, load_tokenizer
from tests.evaluation import models as with_tokenizer


def test_effective_rank():
    axes = torch.eye(7)[:4]
    # Four directions used alike, around a point that is not the origin.
    states = torch.cat([axes, -axes]) + 3
    assert effective_rank(states) == pytest.approx(4, abs=1e-6)
    assert effective_rank(100 * states) == pytest.approx(4, abs=1e-6)
    # Singular values 3 and 1, as parts of their sum: entropy of (3/4, 1/4).
    two = torch.cat([3 * axes[:1], -3 * axes[:1], axes[1:2], -axes[1:2]])
    known = (3 / 4) ** (-3 / 4) * (1 / 4) ** (-1 / 4)
    assert effective_rank(two) == pytest.approx(known, abs=1e-6)
    assert effective_rank(torch.ones(5, 3)) == 0


@pytest.mark.usefixtures("one_process")
def test_norms_of_words(tmp_path):
    with_tokenizer.exported(tmp_path)
    model, tokenizer = load_model(tmp_path, torch.float32), load_tokenizer(tmp_path)
    groups = {"generic": ["thing", "a small animal"], "specific": ["lion"]}
    found = word_norms(model, tokenizer, groups)
    assert found.names == ["generic", "specific"] and found.group.tolist() == [0, 0, 1]
    ids = tokenizer(" a small animal", add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        x, seen = model.model.embed_tokens(ids), []
        for part in (model.model.layers[-1], model.model.norm):
            part.register_forward_hook(lambda m, i, out: seen.append(out))
        model.model(inputs_embeds=x)
    before, after = (states[0, -1].square().sum().sqrt() for states in seen)
    assert found.layer[1] == pytest.approx(before.item(), rel=1e-5)
    assert found.normed[1] == pytest.approx(after.item(), rel=1e-5)
    mean, error = found.mean(found.layer, 0)
    assert mean == pytest.approx(found.layer[:2].mean().item(), rel=1e-5)
    assert error == pytest.approx((found.layer[0] - found.layer[1]).abs().item() / 2, rel=1e-5)


def test_groups_of_the_package():
    found = {name: read_groups(path) for name, path in GROUPS.items()}
    assert [len(words) for words in found["wordnet"].values()] == [40] * 5
    assert list(found["hyplora"])[0] == "function words"
    assert found["science"]["4"][:2] == ["algebra", "geometry"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\tx\n", "needs two groups or more"),
        ("# none\n", "needs two groups or more"),
        ("a\tx\na\ty\nb\tz\n", "of two words or more"),
        ("a\tx\na\ty\nb\tx\nb\tz\n", "'x' is there twice"),
        ("a\tx\nb\n", "line 2: not a group, a tab and a word"),
        ("a\tx\n\ty\n", "line 2: not a group, a tab and a word"),
    ],
)
def test_what_a_file_of_groups_gets_wrong(text, said, tmp_path):
    (tmp_path / "groups.tsv").write_text(text)
    with pytest.raises(WordsError, match=said):
        read_groups(tmp_path / "groups.tsv")
    with pytest.raises(WordsError, match="No such file"):
        read_groups(tmp_path / "nothing.tsv")
