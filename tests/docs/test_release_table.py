"""docs/from-the-helm-release.md: every option of the README there, only flags that exist."""

import argparse
import re
from pathlib import Path

import pytest
from megatron.training.arguments import add_megatron_arguments

from helm_megatron.pretrain import add_args

PAGE = Path(__file__).parents[2] / "docs" / "from-the-helm-release.md"
# Those that the release's README lists.
OPTIONS = """
    train min_lr_ratio warm_up_ratio seed lr weight_decay packing_ratio gradient_accumulation_steps
    CHECKPOINT_DIR log_dir data_path model_name find_unused_parameters max_batch_size max_seq_len
    project_emb vocab_size dim inter_dim mice_inter_dim n_layers n_dense_layers n_heads
    n_routed_experts n_shared_experts n_activated_experts n_expert_groups n_limited_groups
    score_func route_scale bias_update_speed seq_bal_alpha train_curv q_lora_rank kv_lora_rank
    qk_nope_head_dim qk_rope_head_dim v_head_dim original_seq_len rope_theta rope_factor beta_fast
    beta_slow arch
""".split()


@pytest.fixture(scope="module")
def rows():
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_option_has_a_row(rows):
    assert [row[0].strip("`") for row in rows] == OPTIONS


def test_an_option_without_a_flag_has_a_reason(rows):
    assert all(len(row) == 4 or len(row) == 3 for row in rows)
    for row in rows:
        assert row[2].startswith("`--") or len(row[-1]) > 20, row


def test_every_flag_on_the_page_exists():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    known = add_args(add_megatron_arguments(parser))._option_string_actions
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", PAGE.read_text()))
    of_the_release, of_torchrun = {"--project", "--train"}, {"--nproc"}
    unknown = flags - set(known) - of_the_release - of_torchrun
    assert len(flags) > 40 and not unknown
