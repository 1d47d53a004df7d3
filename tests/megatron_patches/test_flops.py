"""The floating-point operations that a run logs, against those that torch counts on real models."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

COMMON = """
    --num-layers 3 --hidden-size 48 --ffn-hidden-size 80 --num-attention-heads 4
    --seq-length 40 --max-position-embeddings 40 --vocab-size 256
    --swiglu --normalization RMSNorm --disable-bias-linear --position-embedding-type rope
    --untie-embeddings-and-output-weights --hidden-dropout 0 --attention-dropout 0
    --micro-batch-size 2 --global-batch-size 2 --lr 1e-3 --train-iters 1
"""
# Keys as wide as values: kernels pad the narrower ones.
LATENT = """
    --multi-latent-attention --rope-type rope --kv-lora-rank 24 --qk-head-dim 10
    --qk-pos-emb-head-dim 6 --v-head-dim 16
"""
MOE = """
    --num-experts 4 --moe-router-topk 2 --moe-ffn-hidden-size 32 --moe-layer-freq [0,1,1]
    --moe-shared-expert-intermediate-size 56 --moe-router-load-balancing-type none
    --moe-token-dispatcher-type alltoall
"""
MODELS = {
    "HELM-D": "--kv-channels 12",
    "grouped queries": "--kv-channels 16 --group-query-attention --num-query-groups 2",
    "latent": LATENT,
    "latent queries": f"{LATENT} --q-lora-rank 20",
    "MiCE": LATENT + MOE,
}


def counter():
    """Torch's counter; in 2.11 it knows neither the attention kernels of CPUs nor shared keys."""

    def every_head(shape, query):
        return (*query[:2], *shape[2:])

    def forward(query, key, value, *_, out_shape=None, **__):
        key, value = every_head(key, query), every_head(value, query)
        return sdpa_flop_count(query, key, value)

    def backward(gradient, query, key, value, *_, out_shape=None, **__):
        key, value = every_head(key, query), every_head(value, query)
        return sdpa_backward_flop_count(gradient, query, key, value)

    operators = torch.ops.aten
    kernels = {
        operators._scaled_dot_product_flash_attention_for_cpu: forward,
        operators._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    return FlopCounterMode(display=False, custom_mapping=kernels)


def arguments(flags):
    from helm_megatron.plan.recipe import parse, validate

    args = validate(parse([*COMMON.split(), *flags.split()]), 1)
    args.padded_vocab_size = args.vocab_size
    return args


def model_of(args):
    from helm_megatron.arguments import config_from_args
    from helm_megatron.model import build_model

    return build_model(
        config_from_args(args),
        args.padded_vocab_size,
        args.seq_length,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=False,
    )


def counted(counts):
    """Operations of matrix products, and of attention kernels."""
    found = counts.get_flop_counts()["Global"]
    attention = sum(n for operator, n in found.items() if "scaled_dot_product" in str(operator))
    return sum(found.values()) - attention, attention


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean"])
@pytest.mark.parametrize("name", MODELS)
def test_flops_are_those_of_the_real_model(one_process, monkeypatch, name, geometry):
    from helm_megatron.layers import attention as cores
    from helm_megatron.megatron_patches.flops import num_floating_point_operations

    # Torch's causal bias cannot be made while it counts; the mask changes no count.
    monkeypatch.setattr(cores, "causal_lower_right", lambda *_: None, raising=False)
    args = arguments(f"{MODELS[name]} --geometry {geometry}")
    model = model_of(args)
    batch = args.micro_batch_size
    tokens = torch.randint(args.padded_vocab_size, (batch, args.seq_length))
    with counter() as forward:
        loss = model(tokens, tokens, None, labels=tokens).mean()
    with counter() as backward:
        loss.backward()
    products, attention = counted(forward)
    products += counted(backward)[0]
    expected = num_floating_point_operations(args, batch, seqlen_squared_sum_in_batch=0)
    assert products == expected
    # Kernels are counted by torch without the mask, and their backward with its recomputation.
    pairs = num_floating_point_operations(args, batch) - expected
    assert 3 / 2 * attention == pairs


def test_the_training_loop_counts_here(monkeypatch):
    from megatron.training import training

    from helm_megatron.megatron_patches import flops

    monkeypatch.setattr(training, "num_floating_point_operations", flops.megatrons_count)
    flops.apply()
    assert training.num_floating_point_operations is flops.num_floating_point_operations
