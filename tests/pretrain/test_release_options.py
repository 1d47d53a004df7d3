"""docs/from-the-helm-release.md: every option of the release has a flag, or a reason."""

import argparse
import re
import shlex
import sys

import pytest

from helm_megatron.checks import check_args
from tests.pretrain.runs import DENSE, MICE, ROOT

DOCUMENT = (ROOT / "docs" / "from-the-helm-release.md").read_text()
# The README's list.
OPTIONS = """
    train min_lr_ratio warm_up_ratio seed lr weight_decay packing_ratio gradient_accumulation_steps
    CHECKPOINT_DIR log_dir data_path model_name find_unused_parameters max_batch_size max_seq_len
    project_emb vocab_size dim inter_dim mice_inter_dim n_layers n_dense_layers n_heads
    n_routed_experts n_shared_experts n_activated_experts n_expert_groups n_limited_groups
    score_func route_scale bias_update_speed seq_bal_alpha train_curv q_lora_rank kv_lora_rank
    qk_nope_head_dim qk_rope_head_dim v_head_dim original_seq_len rope_theta rope_factor beta_fast
    beta_slow arch
""".split()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in DOCUMENT.splitlines()
    if re.match(r"\| `\w+` \|", line)
]
RECIPES = re.findall(r"```bash\n(torchrun .*?)```", DOCUMENT, re.DOTALL)


@pytest.fixture(scope="module")
def flags():
    """All flags of pretrain_helm.py."""
    from megatron.training.arguments import add_megatron_arguments

    from helm_megatron.pretrain import add_args

    parser = add_args(add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False)))
    return {flag for action in parser._actions for flag in action.option_strings}


def test_every_option_has_a_row():
    assert [row[0].strip("`") for row in ROWS] == OPTIONS


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip("`"))
def test_flags_exist_or_there_is_a_reason(row, flags):
    named = re.findall(r"`(--[\w-]+)", row[2])
    assert named or len(row[3]) > 40
    assert row[2] == "none" or named
    assert set(named) | set(re.findall(r"`(--[\w-]+)", row[3])) <= flags | {"--dim"}


def test_other_flags_of_the_document_exist(flags):
    options = {f"--{option}" for option in OPTIONS}
    assert set(re.findall(r"(--[a-z][\w-]+)", DOCUMENT)) <= flags | options | {"--nproc-per-node"}


def test_yarn_flags_reach_latent_attention(monkeypatch):
    from megatron.training.arguments import parse_and_validate_args

    from helm_megatron.arguments import config_from_args
    from helm_megatron.pretrain import add_args

    yarn = "--rope-type yarn --yarn-beta-fast 7 --yarn-original-max-position-embeddings 16".split()
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(sys, "argv", ["pretrain_helm.py", *DENSE, *MICE, *yarn])
    config = config_from_args(parse_and_validate_args(add_args))
    assert (config.beta_fast, config.beta_slow) == (7, 1)
    assert config.original_max_position_embeddings == 16


@pytest.mark.parametrize("recipe", RECIPES, ids=["120M", "1B"])
def test_recipes_are_good_flags(recipe, monkeypatch):
    from megatron.training.arguments import parse_args, validate_args

    from helm_megatron.pretrain import add_args

    monkeypatch.setenv("WORLD_SIZE", "4")
    text = recipe.replace("\\\n", " ").replace('"$STEPS"', "100")
    words = shlex.split(text.replace('--data-path "$DATA"', "--mock-data"))
    start = words.index("pretrain_helm.py")
    monkeypatch.setattr(sys, "argv", words[start:])
    args = parse_args(add_args)
    check_args(args)
    validate_args(args)
    dense, experts = 1, args.num_layers - 1
    assert args.moe_layer_freq == [0] * dense + [1] * experts
    assert args.global_batch_size % (4 * args.micro_batch_size) == 0


def test_odd_widths_train(starter):
    """The release's hidden and feed-forward widths are odd, its heads do not divide them."""
    odd = "--hidden-size 33 --ffn-hidden-size 65 --kv-channels 8 --train-iters 1".split()
    for geometry in ("lorentz", "euclidean"):
        assert starter.run(*odd, "--geometry", geometry)[1] > 0
