"""Flags of Megatron's for speed: those that cannot work here, and those that do nothing.

The first are refused before anything starts, the second are named once at the start.
"""

from __future__ import annotations

import argparse

from helm_megatron.checks.refusals import Rules, flag_of, has_transformer_engine


def refusals(args: argparse.Namespace) -> Rules:
    """Of each that would fail late or compute something else whether it is given, and why not."""
    local, lorentz = args.transformer_impl == "local", args.geometry == "lorentz"
    yield (
        args.overlap_moe_expert_parallel_comm,
        "--overlap-moe-expert-parallel-comm: its schedule knows no layers but Megatron's; drop it",
    )
    for flag in ("qk_clip", "log_max_attention_logit"):
        yield (
            getattr(args, flag) and (local or lorentz),
            f"{flag_of(flag)}: needs the scores of Transformer Engine's own attention, "
            "so --geometry euclidean and --transformer-impl transformer_engine; drop the flag",
        )
    graphs = args.cuda_graph_impl != "none" or any(
        getattr(args, old, False) for old in ("enable_cuda_graph", "external_cuda_graph")
    )
    yield graphs and lorentz, "--cuda-graph-impl: HELM's layers are not captured; drop the flag"
    yield (
        getattr(args, "optimizer_cuda_graph", False) and not has_transformer_engine(),
        "--optimizer-cuda-graph: needs Transformer Engine's Adam, which is not installed; drop it",
    )
    yield (
        args.tp_comm_overlap and local,
        "--tp-comm-overlap: needs --transformer-impl transformer_engine",
    )
    yield (
        args.num_experts is not None
        and args.mice_combine == "reference"
        and lorentz
        and args.moe_permute_fusion,
        "--mice-combine reference: reads a map that --moe-permute-fusion does not make; drop the "
        "latter",
    )


def without_effect(args: argparse.Namespace) -> list[str]:
    """A line for each flag that is let through and changes nothing, with what happens instead."""
    lorentz = args.geometry == "lorentz"
    lines = {
        "--mla-down-proj-fusion: the down projections stay apart": args.mla_down_proj_fusion,
        "--fused-residual-rmsnorm: no norm of these layers takes it": args.fused_residual_rmsnorm,
        "gradient-accumulation fusion: not in --moe-grouped-gemm of HELM's experts": lorentz
        and args.num_experts is not None
        and args.moe_grouped_gemm
        and args.gradient_accumulation_fusion,
        "--cp-comm-type: --transformer-impl local gathers keys and values": args.transformer_impl
        == "local"
        and args.context_parallel_size > 1
        and args.cp_comm_type != ["p2p"],
    }
    return [line for line, given in lines.items() if given]
