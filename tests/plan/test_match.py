"""`helm-megatron plan --match`: the twin that costs the same."""

import json

import pytest

from tests import forked
from tests.plan.test_command import RECIPE

EXPERTS = """
    --num-experts 4 --moe-layer-freq "[0,1,1,1]" --moe-router-topk 2 --moe-ffn-hidden-size 64
    --moe-shared-expert-intermediate-size 64 --moe-token-dispatcher-type alltoall
    --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 1e-2 --mice-curvature-init 1
"""
MODELS = {
    "dense": (RECIPE, {"ffn_hidden_size"}),
    "experts": (
        RECIPE.replace("    --seq", EXPERTS + "    --seq", 1),
        {"ffn_hidden_size", "moe_ffn_hidden_size", "moe_shared_expert_intermediate_size"},
    ),
}
# Feed-forward layers, each expert one.
LAYERS = {"dense": 4, "experts": 1 + 3 * (4 + 1)}


def matched(path, *flags):
    done = forked.command("-m", "helm_megatron.cli", "plan", path, "--json", *flags)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("what", ["parameters", "flops"])
@pytest.mark.parametrize("model", MODELS)
def test_twin_costs_the_same(model, what, tmp_path):
    recipe, names = MODELS[model]
    path = tmp_path / "recipe.sh"
    path.write_text(recipe)
    found = matched(path, "--match", what, "--multiple", 1)
    wanted, widths = found["model"][what], found["widths"]
    assert set(widths) == names and found["geometry"] == "euclidean"
    off = abs(found["twin"][what] - wanted)
    assert off < abs(found["same_widths"][what] - wanted)
    if what == "parameters":  # rounding moves every feed-forward layer by half a channel at most
        assert off <= LAYERS[model] * 3 * 64 / 2
    # The twin of the twin is the model again.
    flags = " ".join(f"--{name.replace('_', '-')} {width}" for name, width in widths.items())
    path.write_text(recipe.replace("    --lr", f"    {flags} --geometry euclidean --lr", 1))
    back = matched(path, "--match", what, "--multiple", 1)
    assert back["model"] == found["twin"] and back["geometry"] == "lorentz"
    assert back["twin"][what] == pytest.approx(wanted, rel=2e-2)


def test_text(tmp_path):
    path = tmp_path / "recipe.sh"
    path.write_text(RECIPE)
    done = forked.command("-m", "helm_megatron.cli", "plan", path, "--match", "flops")
    assert done.returncode == 0, done.stderr
    assert "The twin of as many flops:\n    --geometry euclidean --ffn-hidden-size 1" in done.stdout
    done = forked.command(
        "-m", "helm_megatron.cli", "plan", path, "--match", "flops", "--multiple", 0
    )
    assert done.returncode == 2 and "--multiple 0: must be 1 or more" in done.stderr
