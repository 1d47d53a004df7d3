"""Megatron's fusions are on by default; a run without their libraries has to start all the same."""

import pytest

COMMON = """
    --num-layers 1 --hidden-size 32 --ffn-hidden-size 48 --num-attention-heads 2
    --seq-length 16 --max-position-embeddings 16 --vocab-size 64 --lr 1e-3 --train-iters 1
    --swiglu --normalization RMSNorm --disable-bias-linear --position-embedding-type rope
    --micro-batch-size 1
"""
LATENT = """
    --multi-latent-attention --rope-type rope --kv-lora-rank 8 --qk-head-dim 8
    --qk-pos-emb-head-dim 4 --v-head-dim 8
"""
# Where they are, the flags decide; but latent attention has no fused rotation.
LIBRARIES = {"fused_weight_gradient_mlp_cuda", "transformer_engine"}


@pytest.mark.parametrize(
    ("flags", "installed", "rotation", "gradients"),
    [
        ("", set(), False, False),
        ("", LIBRARIES, True, True),
        (LATENT, LIBRARIES, False, True),
    ],
)
def test_fusions(monkeypatch, flags, installed, rotation, gradients):
    from helm_megatron import arguments
    from helm_megatron.plan.recipe import parse, validate

    args = parse([*COMMON.split(), *flags.split()])
    # A GPU's defaults.
    args.gradient_accumulation_fusion = args.apply_rope_fusion = True
    args = validate(args, 1)
    monkeypatch.setattr(
        arguments.importlib.util, "find_spec", lambda name: name in installed or None
    )
    arguments._drop_missing_fusions(args)
    assert (args.apply_rope_fusion, args.gradient_accumulation_fusion) == (rotation, gradients)


def test_a_config_is_made_without_the_libraries():
    from helm_megatron.arguments import config_from_args
    from helm_megatron.plan.recipe import parse, validate

    args = parse([*COMMON.split(), *LATENT.split()])
    args.gradient_accumulation_fusion = args.apply_rope_fusion = True
    config = config_from_args(validate(args, 1))
    assert not config.gradient_accumulation_fusion and not config.apply_rope_fusion
