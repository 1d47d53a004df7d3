"""`python -m helm_megatron.verify`, run as a user does: it passes what is right, and only that."""

import os
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from helm_megatron.verify import command, shrink
from helm_megatron.verify.result import Difference, wrong
from tests import forked

ROOT = Path(__file__).parents[2]
VERIFY = ["-m", "helm_megatron.verify"]
PLANTED = [str(Path(__file__).with_name("planted.py"))]
# A model of the size of real ones, with the flags of a real run.
FLAGS = """
    --num-layers 24 --hidden-size 2048 --ffn-hidden-size 5632 --num-attention-heads 16
    --group-query-attention --num-query-groups 4 --seq-length 4096 --max-position-embeddings 4096
    --swiglu --normalization RMSNorm --disable-bias-linear --position-embedding-type rope
    --untie-embeddings-and-output-weights --tokenizer-type HuggingFaceTokenizer
    --tokenizer-model nowhere --data-path nowhere --micro-batch-size 4 --global-batch-size 256
    --lr 3e-4 --train-iters 1000 --bf16
""".split()
TENSOR = "--tensor-model-parallel-size 2 --sequence-parallel".split()
CONTEXT = "--context-parallel-size 2".split()


def run(processes, *argv):
    """Exit code and output of the command line, as every rank of torchrun runs it, or one."""
    envs = forked.ranks(processes) if processes > 1 else [{}]
    done = forked.commands(*argv, envs=envs)
    [code] = {each.returncode for each in done}
    return code, "".join(each.stdout + each.stderr for each in done)


@pytest.mark.parametrize("layout", [TENSOR, CONTEXT], ids=["tensor", "context"])
def test_good_layout_passes(layout):
    code, output = run(2, *VERIFY, *FLAGS, *layout)
    assert code == 0, output[-4000:]
    assert output.count("  ok  ") == 4
    assert "the layout computes the same model" in output


def test_planted_mistake_is_found_and_named():
    code, output = run(2, *PLANTED, *FLAGS, *TENSOR)
    assert code == 1
    [line] = [x for x in output.splitlines() if "MISMATCH" in x and "gradients" in x]
    assert "core_attention.temperature" in line
    assert "THE LAYOUT DIFFERS" in output


def test_flags_that_cannot_be_say_one_line():
    code, output = run(1, *VERIFY, *FLAGS, *TENSOR, "--num-attention-heads", "15")
    assert code == 2
    assert [x for x in output.splitlines() if "error" in x] == [
        "verify: error: --tensor-model-parallel-size 2 does not divide --num-attention-heads 15"
    ]


def test_no_image_makes_it_round_to_tf32(monkeypatch):
    for name, images in (("NVIDIA_TF32_OVERRIDE", "1"), ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1")):
        monkeypatch.setenv(name, images)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        for more, kept in ((["--verify-low-precision"], "high"), ([], "highest")):
            monkeypatch.setattr("sys.argv", ["verify", *FLAGS, *more])
            command.settings()
            assert torch.get_float32_matmul_precision() == kept
    finally:
        torch.set_float32_matmul_precision(before)
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
    assert os.environ["TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"] == "0"


def flags(**changes):
    """Flags that `shrink` reads, as the parser leaves them."""
    given = {
        "num_layers": 60,
        "hidden_size": 4096,
        "ffn_hidden_size": None,
        "num_attention_heads": 32,
        "group_query_attention": False,
        "num_query_groups": None,
        "kv_channels": None,
        "multi_latent_attention": False,
        "q_lora_rank": None,
        "kv_lora_rank": 512,
        "qk_head_dim": 128,
        "qk_pos_emb_head_dim": 64,
        "v_head_dim": 128,
        "num_experts": 64,
        "moe_layer_freq": [0] * 3 + [1] * 57,
        "moe_router_topk": 6,
        "moe_router_num_groups": 8,
        "moe_router_group_topk": 3,
        "moe_ffn_hidden_size": 1408,
        "moe_shared_expert_intermediate_size": 2816,
        "seq_length": 4096,
        "micro_batch_size": 8,
        "padded_vocab_size": None,
        "vocab_size": None,
        "world_size": 8,
        "tensor_model_parallel_size": 2,
        "pipeline_model_parallel_size": 2,
        "context_parallel_size": 1,
        "expert_model_parallel_size": 2,
        "pipeline_model_parallel_layout": None,
        "decoder_first_pipeline_num_layers": None,
        "decoder_last_pipeline_num_layers": None,
        "account_for_embedding_in_pipeline_split": False,
        "account_for_loss_in_pipeline_split": False,
        "num_layers_per_virtual_pipeline_stage": None,
        "num_virtual_stages_per_pipeline_rank": None,
        "untie_embeddings_and_output_weights": True,
    }
    return Namespace(**(given | changes))


def test_every_kind_of_layer_survives_shrinking():
    small = shrink.prepare(flags(), full_size=False, low_precision=False)
    assert small.num_layers == 2 and small.moe_layer_freq == [0, 1]
    deep = flags(num_layers_per_virtual_pipeline_stage=15)
    small = shrink.prepare(deep, full_size=False, low_precision=False)
    assert small.num_layers == 4 and small.moe_layer_freq == [0, 1, 1, 1]
    assert small.num_layers_per_virtual_pipeline_stage == 1


@pytest.mark.parametrize("tensor", [1, 2, 4, 8])
@pytest.mark.parametrize("groups", [None, 8, 16])
def test_shrunk_widths_divide_by_the_layout(tensor, groups):
    args = flags(
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=1,
        group_query_attention=groups is not None,
        num_query_groups=groups,
    )
    small = shrink.prepare(args, full_size=False, low_precision=False)
    assert small.hidden_size <= 8 * 2 * 16
    heads, kept = small.num_attention_heads, small.num_query_groups or small.num_attention_heads
    assert heads % tensor == kept % tensor == heads % kept == 0
    assert (heads == kept) == (groups is None)
    assert small.moe_ffn_hidden_size % tensor == small.seq_length % tensor == 0
    assert small.moe_ffn_hidden_size <= small.moe_shared_expert_intermediate_size
    experts, chosen = small.num_experts, small.moe_router_topk
    assert experts < 64 and experts % 8 == experts % args.expert_model_parallel_size == 0
    assert chosen < experts and chosen <= experts // 8 * args.moe_router_group_topk
    assert args.hidden_size == 4096  # the flags given are left alone


def test_full_size_stays():
    args = flags(vocab_size=1000, make_vocab_size_divisible_by=128)
    kept = shrink.prepare(args, full_size=True, low_precision=False)
    assert (kept.num_layers, kept.hidden_size, kept.num_experts) == (60, 4096, 64)
    assert (kept.padded_vocab_size, kept.global_batch_size) == (1024, 8 * 4 * 2)


def test_what_is_not_a_number_is_wrong():
    nan = Difference("a", float("nan"), 1.0)
    assert wrong([Difference("b", 1.0, 1.0), nan], 1e-3, 0.0)[0][1] is nan
