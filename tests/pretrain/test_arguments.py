"""Flags that cannot work are refused in one line that names the flag, before anything starts."""

import os
import subprocess
import sys

import pytest

from helm_megatron.arguments import add_helm_args, config_from_args, helm_settings_from_args
from helm_megatron.checks import ArgumentError, check_args
from helm_megatron.checks.fast_paths import without_effect
from tests.pretrain.runs import DENSE, MICE, ROOT


def parse(*flags):
    from megatron.training.arguments import parse_args

    from helm_megatron.pretrain import add_args

    argv, sys.argv = sys.argv, ["pretrain_helm.py", *map(str, flags)]
    try:
        return parse_args(add_args)
    finally:
        sys.argv = argv


def without(flags, name, values=0):
    at = flags.index(name)
    return flags[:at] + flags[at + 1 + values :]


REFUSED = {
    "--swiglu": without(DENSE, "--swiglu"),
    "--squared-relu": [*DENSE, "--squared-relu"],
    "--normalization": without(DENSE, "--normalization", 1),
    "--apply-layernorm-1p": [*DENSE, "--apply-layernorm-1p"],
    "--disable-bias-linear": without(DENSE, "--disable-bias-linear"),
    "--add-qkv-bias": [*DENSE, "--add-qkv-bias"],
    "--position-embedding-type": without(DENSE, "--position-embedding-type", 1),
    "--kv-channels": [*DENSE, "--kv-channels", 7],
    "--rotary-percent": [*DENSE, "--rotary-percent", 0.4],
    "--qk-pos-emb-head-dim": [*DENSE, *MICE, "--qk-pos-emb-head-dim", 5],
    "--padded-vocab-size": [
        *DENSE, "--padded-vocab-size", 127, "--tensor-model-parallel-size", 2
    ],
    "--num-attention-heads": [*DENSE, "--tensor-model-parallel-size", 3],
    "--num-query-groups": [
        *DENSE, "--group-query-attention", "--num-query-groups", 1,
        "--tensor-model-parallel-size", 2,
    ],
    "--num-experts": [*DENSE, *MICE, "--expert-model-parallel-size", 3],
    "--sequence-parallel": [*DENSE, *MICE, "--tensor-model-parallel-size", 2],
    "--attention-dropout": [*DENSE, "--attention-backend", "flash", "--attention-dropout", 0.1],
    "--attention-backend": [*DENSE, "--attention-backend", "local"],
    "--curvature": [*DENSE, "--curvature", 0],
    "--mice-curvature-init": [*DENSE, "--mice-curvature-init", 1, 2, 3],
    "--moe-grouped-gemm": [
        *DENSE, *MICE, "--moe-grouped-gemm", "--fp8-format", "hybrid", "--transformer-impl",
        "transformer_engine",
    ],
    "--moe-token-dispatcher-type": [
        *DENSE, *MICE, "--moe-token-dispatcher-type", "allgather", "--mice-combine", "reference"
    ],
    "--transformer-impl": [*DENSE, "--transformer-impl", "inference_optimized"],
    "--seq-length": [
        *DENSE, "--seq-length", 36, "--sequence-parallel",
        "--tensor-model-parallel-size", 4, "--context-parallel-size", 2,
    ],
    "--context-parallel-size": [
        *DENSE, "--dataloader-inter-document-masking", "--context-parallel-size", 2
    ],
    "--reset-attention-mask": [
        *DENSE, "--reset-attention-mask", "--dataloader-inter-document-masking"
    ],
    "--micro-batch-size": [
        *DENSE, "--dataloader-inter-document-masking", "--pipeline-model-parallel-size", 2
    ],
    "--moe-router-load-balancing-type": [
        *DENSE, *MICE, "--moe-router-load-balancing-type", "seq_aux_loss", "--sequence-parallel",
        "--tensor-model-parallel-size", 2, "--dataloader-inter-document-masking",
    ],
    "--optimizer": [*DENSE, "--helm-embedding", "lorentz", "--optimizer", "sgd"],
    "--untie-embeddings-and-output-weights": [
        *without(DENSE, "--untie-embeddings-and-output-weights"), "--helm-embedding", "lorentz"
    ],
    "--optimizer-cpu-offload": [
        *DENSE, "--helm-embedding", "lorentz", "--optimizer-cpu-offload"
    ],
    "--decoupled-lr": [
        *DENSE, "--helm-embedding", "lorentz", "--decoupled-lr", 1, "--embedding-lr-mult", 2
    ],
    "--layer-curvature": [*DENSE, "--layer-curvature", 1, 2, "--embedding-curvature", 2],
    "--curvature-lr-mult": [*DENSE, "--curvature-lr-mult", -1],
    "--mice-bias-update": [*DENSE, *MICE, "--mice-bias-update", "proportional"],
    "--use-cpu-initialization": [*DENSE, "--use-cpu-initialization"],
    "--hidden-size": without(DENSE, "--hidden-size", 1),
    "--overlap-moe-expert-parallel-comm": [*DENSE, *MICE, "--overlap-moe-expert-parallel-comm"],
    "--qk-clip": [*DENSE, "--qk-clip"],
    "--log-max-attention-logit": [*DENSE, "--geometry", "euclidean", "--log-max-attention-logit"],
    "--cuda-graph-impl": [*DENSE, "--cuda-graph-impl", "local"],
    "--optimizer-cuda-graph": [*DENSE, "--optimizer-cuda-graph"],
    "--tp-comm-overlap": [*DENSE, "--tp-comm-overlap"],
    "--moe-permute-fusion": [
        *DENSE, *MICE, "--mice-combine", "reference", "--moe-permute-fusion"
    ],
}  # fmt: skip


@pytest.mark.parametrize("flag", REFUSED)
def test_refused_in_one_line_that_names_the_flag(flag):
    with pytest.raises(ArgumentError) as refusal:
        check_args(parse(*REFUSED[flag]))
    assert flag in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_environment_that_chooses_other_attention_is_refused(monkeypatch):
    """As many scripts for GPT export it; Megatron would stop at an assertion."""
    monkeypatch.setenv("NVTE_FUSED_ATTN", "0")
    check_args(parse(*DENSE, "--attention-backend", "unfused"))
    with pytest.raises(ArgumentError, match="NVTE_FUSED_ATTN=0 .* auto needs 1; unset"):
        check_args(parse(*DENSE))


POINTS = ["--helm-embedding", "lorentz", "--embedding-lr-mult", 2, "--optimizer"]


@pytest.mark.parametrize(
    "flags",
    [
        DENSE,
        [*DENSE, *MICE],
        [*DENSE, *POINTS, "adam"],
        [*DENSE, *POINTS, "sgd", "--embedding-optimizer", "adam"],
        [*DENSE, *MICE, "--mice-bias-update", "proportional", "--mice-routing", "reference"],
    ],
)
@pytest.mark.parametrize("geometry", ["lorentz", "euclidean"])
def test_good_flags_pass(flags, geometry):
    check_args(parse(*flags, "--geometry", geometry))


def test_what_has_no_effect_is_named():
    """Each by its flag, where it is given; nothing where none is."""
    assert without_effect(parse(*DENSE, *MICE, "--moe-grouped-gemm")) == []
    flags = [*MICE, "--mla-down-proj-fusion", "--fused-residual-rmsnorm", "--moe-grouped-gemm"]
    flags += ["--context-parallel-size", 2, "--cp-comm-type", "all_gather"]
    args = parse(*DENSE, *flags)
    args.gradient_accumulation_fusion = True  # as on a GPU with apex
    named = "--mla-down-proj-fusion --fused-residual-rmsnorm gradient-accumulation --cp-comm-type"
    for line, name in zip(without_effect(args), named.split(), strict=True):
        assert line.startswith(name) and "\n" not in line
    args.geometry, args.transformer_impl = "euclidean", "transformer_engine"
    assert len(without_effect(args)) == 2


def test_command_line_says_one_line_and_exits_with_2():
    flags = map(str, REFUSED["--normalization"])
    done = subprocess.run(
        [sys.executable, ROOT / "pretrain_helm.py", *flags],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 2
    complaints = [line for line in done.stderr.splitlines() if "error" in line]
    assert len(complaints) == 1 and "--normalization LayerNorm" in complaints[0]
    assert "Traceback" not in done.stderr


def test_flags_are_few_and_explained():
    import argparse

    parser = argparse.ArgumentParser(add_help=False)
    ours = add_helm_args(parser)._actions
    assert len(ours) <= 20
    assert all(action.help for action in ours)


def test_residual_scale_follows_the_model():
    assert helm_settings_from_args(parse(*DENSE)).residual_scale == 4.0
    assert helm_settings_from_args(parse(*DENSE, *MICE)).residual_scale == 1.0
    assert helm_settings_from_args(parse(*DENSE, "--residual-scale", 0.5)).residual_scale == 0.5


def test_yarn_flags_reach_latent_attention():
    from megatron.training.arguments import validate_args

    yarn = "--rope-type yarn --yarn-beta-fast 16 --yarn-original-max-position-embeddings 16".split()
    latent = without(without(MICE, "--rope-type", 1), "--num-experts", 1)
    args = parse(*DENSE, *latent[: latent.index("--moe-router-topk")], *yarn)
    validate_args(args)
    config = config_from_args(args)
    assert (config.beta_fast, config.beta_slow) == (16, 1)
    assert config.original_max_position_embeddings == 16
