"""HELM's command-line flags beside Megatron's, and the combinations that cannot work.

Every HELM model takes Megatron's own flags; those here say only what Megatron has no word for.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator

from megatron.core.transformer import TransformerConfig
from megatron.training.argument_utils import core_transformer_config_from_args

from helm_megatron.config import HelmConfig, attach


class ArgumentError(Exception):
    """Flags that cannot work together; the message is one line that names the flag."""


def add_helm_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add HELM's flags to Megatron's parser and return it."""
    group = parser.add_argument_group(
        "helm", "hyperbolic geometry; c means sectional curvature -1/c"
    )
    group.add_argument(
        "--geometry",
        choices=["lorentz", "euclidean"],
        default="lorentz",
        help="lorentz: HELM; euclidean: its twin, Megatron's own leaves under the same flags.",
    )
    group.add_argument(
        "--curvature", type=float, default=1.0, help="c of the hidden activations (default 1)."
    )
    group.add_argument(
        "--embedding-curvature",
        type=float,
        default=None,
        help="c of the token embeddings (default: --curvature).",
    )
    group.add_argument(
        "--output-curvature",
        type=float,
        default=None,
        help="c of the points that give the logits (default: --curvature).",
    )
    group.add_argument(
        "--helm-embedding",
        choices=["euclidean", "lorentz"],
        default="euclidean",
        help="euclidean: a free table, read as space coordinates; lorentz: points at "
        "--embedding-curvature, rescaled to --curvature. Both are updated by --optimizer.",
    )
    group.add_argument(
        "--disable-lorentz-bias",
        action="store_true",
        help="Lorentz linears without a bias (--disable-bias-linear is about Euclidean ones).",
    )
    group.add_argument(
        "--residual-scale",
        type=float,
        default=None,
        help="Scale of the Lorentz residual, in units of sqrt(hidden-size + 1). Default: 4 for "
        "HELM-D, 1 with --multi-latent-attention or --num-experts (HELM-MiCE).",
    )
    group.add_argument(
        "--learn-residual-scale", action="store_true", help="Learn the scale of every residual."
    )
    _add_mice_args(parser)
    return parser


def _add_mice_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("mice", "mixture of curvature experts")
    group.add_argument(
        "--mice-curvature-init",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="C",
        help="Initial c of the experts: one value, or the first and the last expert's, the others "
        "spaced evenly by their global index.",
    )
    group.add_argument(
        "--mice-fixed-curvature", action="store_true", help="Do not learn the experts' curvatures."
    )
    group.add_argument(
        "--mice-combine",
        choices=["centroid", "reference"],
        default="centroid",
        help="How experts are combined: Lorentz centroid (the paper), or the folded residuals of "
        "the released code (to import its checkpoints).",
    )
    group.add_argument(
        "--mice-routing",
        choices=["megatron", "reference"],
        default="megatron",
        help="Expert selection: Megatron's router, or the released rule (bias for softmax scores "
        "too, groups scored by their two best).",
    )


def helm_config_from_args(args: argparse.Namespace) -> HelmConfig:
    """The hyperbolic settings that the flags name."""
    mice = args.multi_latent_attention or args.num_experts is not None
    low, high = args.mice_curvature_init[0], args.mice_curvature_init[-1]

    def or_hidden(curvature: float | None) -> float:
        return args.curvature if curvature is None else curvature

    return HelmConfig(
        geometry=args.geometry,
        curvature=args.curvature,
        embedding_curvature=or_hidden(args.embedding_curvature),
        output_curvature=or_hidden(args.output_curvature),
        linear_bias=not args.disable_lorentz_bias,
        residual_scale=args.residual_scale or (1.0 if mice else 4.0),
        learn_residual_scale=args.learn_residual_scale,
        embedding=args.helm_embedding,
        mice_combine=args.mice_combine,
        mice_routing=args.mice_routing,
        mice_curvature_init=(low, high),
        mice_learn_curvature=not args.mice_fixed_curvature,
    )


def config_from_args(args: argparse.Namespace) -> TransformerConfig:
    """Megatron's transformer config with the hyperbolic settings attached."""
    return attach(core_transformer_config_from_args(args), helm_config_from_args(args))


def check_args(args: argparse.Namespace) -> None:
    """Refuse, before anything is set up, flags that cannot make a HELM model.

    Raises:
        ArgumentError: for the first problem found, naming the flag and how to mend it.
    """
    for flag in ("hidden_size", "num_attention_heads", "num_layers"):
        if getattr(args, flag) is None:
            raise ArgumentError(f"--{flag.replace('_', '-')} is missing")
    for rules in (_geometry_rules, _layer_rules, _moe_rules, _layout_rules, _document_rules):
        for broken, message in rules(args):
            if broken:
                raise ArgumentError(message)


Rules = Iterator[tuple[bool, str]]


def _geometry_rules(args: argparse.Namespace) -> Rules:
    for flag in ("curvature", "embedding_curvature", "output_curvature", "residual_scale"):
        value = getattr(args, flag)
        yield (
            value is not None and not value > 0,
            f"--{flag.replace('_', '-')} {value}: must be positive",
        )
    init = args.mice_curvature_init
    shown = " ".join(map(str, init))
    yield len(init) > 2, f"--mice-curvature-init {shown}: takes one value, or first and last"
    yield min(init) <= 0, f"--mice-curvature-init {shown}: curvatures must be positive"


def _layer_rules(args: argparse.Namespace) -> Rules:
    yield (
        not args.swiglu,
        "--swiglu is missing: HELM's feed-forward layers are gated with SiLU, no other activation",
    )
    for flag in ("squared_relu", "quick_geglu", "openai_gelu", "onnx_safe"):
        name = f"--{flag.replace('_', '-')}"
        yield (
            bool(getattr(args, flag, False)),
            f"{name}: HELM's activation is --swiglu; drop the flag",
        )
    yield (
        args.normalization != "RMSNorm",
        f"--normalization {args.normalization}: HELM normalizes with RMSNorm; pass RMSNorm",
    )
    yield (
        args.layernorm_zero_centered_gamma,
        "--apply-layernorm-1p: not supported by HELM's RMSNorm; drop the flag",
    )
    yield (
        args.add_bias_linear,
        "--disable-bias-linear is missing: Lorentz linears bring their own bias "
        "(--disable-lorentz-bias drops it)",
    )
    yield args.add_qkv_bias, "--add-qkv-bias: Lorentz linears bring their own bias; drop the flag"
    yield (
        args.position_embedding_type != "rope",
        f"--position-embedding-type {args.position_embedding_type}: HELM rotates space "
        "coordinates (HoPE); pass rope",
    )
    if args.multi_latent_attention:
        yield (
            args.qk_pos_emb_head_dim % 2 == 1,
            f"--qk-pos-emb-head-dim {args.qk_pos_emb_head_dim}: rotary width must be even",
        )
    else:
        yield _rotary_width_rule(args)
    yield bool(args.mtp_num_layers), "--mtp-num-layers: HELM has no multi-token prediction"


def _rotary_width_rule(args: argparse.Namespace) -> tuple[bool, str]:
    channels = args.kv_channels or args.hidden_size // args.num_attention_heads
    width = int(channels * args.rotary_percent)
    return (
        width % 2 == 1,
        f"--kv-channels {channels} with --rotary-percent {args.rotary_percent} rotates {width} "
        "dimensions of a head: the rotary width must be even",
    )


def _moe_rules(args: argparse.Namespace) -> Rules:
    if args.num_experts is None:
        return
    dispatcher = args.moe_token_dispatcher_type
    yield (
        dispatcher not in ("alltoall", "allgather"),
        f"--moe-token-dispatcher-type {dispatcher}: use alltoall or allgather",
    )
    for flag in ("moe_shared_expert_overlap", "moe_shared_expert_gate", "moe_latent_size"):
        name = f"--{flag.replace('_', '-')}"
        yield bool(getattr(args, flag)), f"{name}: not supported with MiCE; drop the flag"
    yield (
        args.moe_grouped_gemm,
        "--moe-grouped-gemm: HELM's experts are run one by one; drop the flag",
    )
    if args.mice_combine == "reference":
        need = "--mice-combine reference needs"
        yield dispatcher != "alltoall", f"{need} --moe-token-dispatcher-type alltoall"
        yield (
            args.moe_shared_expert_intermediate_size is None,
            f"{need} a shared expert: --moe-shared-expert-intermediate-size",
        )
        yield (
            args.moe_expert_capacity_factor is not None,
            f"{need} every chosen expert: drop --moe-expert-capacity-factor",
        )


def _layout_rules(args: argparse.Namespace) -> Rules:
    impl = args.transformer_impl
    yield (
        impl not in ("local", "transformer_engine"),
        f"--transformer-impl {impl}: use local or transformer_engine",
    )
    yield (
        impl == "transformer_engine" and importlib.util.find_spec("transformer_engine") is None,
        "--transformer-impl transformer_engine: Transformer Engine is not installed; install the "
        "extra `te`, or pass --transformer-impl local",
    )
    tp = args.tensor_model_parallel_size
    size = f"--tensor-model-parallel-size {tp}"
    heads = args.num_attention_heads
    yield heads % tp != 0, f"{size} does not divide --num-attention-heads {heads}"
    if args.group_query_attention:
        groups = args.num_query_groups
        yield groups % tp != 0, f"{size} does not divide --num-query-groups {groups}"
    if args.padded_vocab_size is not None:
        rows = args.padded_vocab_size
        yield rows % tp != 0, f"{size} does not divide --padded-vocab-size {rows}"
    if args.num_experts is not None:
        ep = args.expert_model_parallel_size
        yield (
            args.num_experts % ep != 0,
            f"--expert-model-parallel-size {ep} does not divide --num-experts {args.num_experts}",
        )
        yield (
            tp > 1 and not args.sequence_parallel,
            f"{size} with --num-experts needs --sequence-parallel",
        )
    if args.sequence_parallel and args.seq_length is not None:
        cp = args.context_parallel_size
        yield (
            args.seq_length % (tp * cp) != 0,
            f"--seq-length {args.seq_length}: --sequence-parallel needs a multiple of {tp * cp}, "
            "tensor times context parallel size",
        )


def _document_rules(args: argparse.Namespace) -> Rules:
    mask, packing = "--reset-attention-mask", "--dataloader-inter-document-masking"
    yield (
        args.reset_attention_mask and args.transformer_impl != "local",
        f"{mask} needs --transformer-impl local: Transformer Engine takes no mask; use {packing}",
    )
    if not args.dataloader_inter_document_masking:
        return
    yield args.reset_attention_mask, f"{mask}: {packing} keeps documents apart; drop one of them"
    cp, pp = args.context_parallel_size, args.pipeline_model_parallel_size
    yield cp > 1, f"{packing}: not with --context-parallel-size {cp}; use {mask}"
    yield (
        pp > 1 and args.micro_batch_size > 1,
        f"{packing}: with pipeline parallelism needs --micro-batch-size 1",
    )
    yield (
        args.num_experts is not None
        and "seq_aux_loss" in args.moe_router_load_balancing_type
        and args.sequence_parallel
        and args.micro_batch_size > 1,
        f"{packing}: --moe-router-load-balancing-type seq_aux_loss with --sequence-parallel needs "
        "--micro-batch-size 1",
    )
