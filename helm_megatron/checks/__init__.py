"""Combinations of flags that cannot make a HELM model, refused before anything is set up."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable

from helm_megatron.checks import fast_paths, foreign, numbers, schedule, unsupported
from helm_megatron.checks.paths import check_paths, check_save
from helm_megatron.checks.refusals import (
    ArgumentError,
    Rules,
    flag_of,
    has_transformer_engine,
    megatrons_refusals,
    refuse_in_one_line,
)
from helm_megatron.config import CURVATURES
from helm_megatron.data.errors import DataError
from helm_megatron.data.split import parse_split
from helm_megatron.data.training.blend import prefixes_of

__all__ = [
    "ArgumentError",
    "check_args",
    "check_paths",
    "check_save",
    "check_training",
    "check_values",
    "flag_of",
    "megatrons_refusals",
    "refuse_in_one_line",
]

# What chooses attention in Transformer Engine. Megatron sets it by --attention-backend, and asserts
# where it is set to another value already; all three are 1 for `auto`.
_TE_ATTENTION = ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN")
_TE_ATTENTION_OF = {"flash": "100", "fused": "010", "unfused": "001", "auto": "111"}


def check_values(args: argparse.Namespace) -> None:
    """Refuse flags that cannot be, each by itself, as they were parsed.

    Raises:
        ArgumentError: for the first problem found.
    """
    _raise_first(args, (numbers.rules, foreign.rules))


def check_training(args: argparse.Namespace) -> None:
    """Refuse flags that lack what every training needs.

    Raises:
        ArgumentError: for the first problem found.
    """
    _raise_first(args, (schedule.training_rules,))


def check_args(args: argparse.Namespace) -> None:
    """Refuse, before anything is set up, flags that cannot make a HELM model.

    Raises:
        ArgumentError: for the first problem found, naming the flag and how to mend it.
    """
    for flag in ("hidden_size", "num_attention_heads", "num_layers"):
        value = getattr(args, flag)
        if value is None or value < 1:
            raise ArgumentError(f"{flag_of(flag)} is missing or not positive")
    rules = (
        unsupported.rules,
        _geometry_rules,
        _layer_rules,
        _attention_rules,
        _moe_rules,
        _loss_rules,
        _optimizer_rules,
        _layout_rules,
        fast_paths.refusals,
        schedule.rules,
        _document_rules,
        _data_rules,
        unsupported.process_rules,
    )
    _raise_first(args, rules)


def _raise_first(
    args: argparse.Namespace, rules: Iterable[Callable[[argparse.Namespace], Rules]]
) -> None:
    for each in rules:
        for broken, message in each(args):
            if broken:
                raise ArgumentError(message)


def _geometry_rules(args: argparse.Namespace) -> Rules:
    low, high = CURVATURES
    for flag in ("curvature", "embedding_curvature", "output_curvature"):
        value = getattr(args, flag)
        yield (
            value is not None and not low <= value <= high,
            f"{flag_of(flag)} {value}: must be from {low:g} to {high:g}",
        )
    scale = args.residual_scale
    yield (
        scale is not None and not (scale > 0 and math.isfinite(scale)),
        f"--residual-scale {scale}: must be a positive number",
    )
    for flag in ("mice_curvature_init", "layer_curvature"):
        values = getattr(args, flag) or []
        shown = f"{flag_of(flag)} {' '.join(map(str, values))}"
        yield len(values) > 2, f"{shown}: takes one value, or first and last"
        yield (
            not all(low <= value <= high for value in values),
            f"{shown}: curvatures must be from {low:g} to {high:g}",
        )
    yield (
        args.layer_curvature is not None
        and args.helm_embedding == "euclidean"
        and args.embedding_curvature not in (None, args.curvature),
        "--layer-curvature: a euclidean table has the --curvature; drop --embedding-curvature, or "
        "pass --helm-embedding lorentz",
    )


def _layer_rules(args: argparse.Namespace) -> Rules:
    yield (
        not args.swiglu,
        "--swiglu is missing: HELM's feed-forward layers are gated with SiLU, no other activation",
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


def _attention_rules(args: argparse.Namespace) -> Rules:
    backend = args.attention_backend.name
    flag = f"--attention-backend {backend}"
    yield backend == "local", f"{flag}: takes another spec; pass unfused"
    for variable, needed in zip(_TE_ATTENTION, _TE_ATTENTION_OF.get(backend, "111"), strict=True):
        given = os.environ.get(variable)
        yield (
            given not in (None, needed),
            f"{variable}={given} in the environment: {flag} needs {needed}; unset the variable, "
            "the flag alone chooses",
        )
    if backend != "flash" or args.geometry != "lorentz":
        return
    flash = f"{flag}: Lorentz flash attention"
    from helm_megatron.kernels.dispatch import TRITON_NEEDS, has_triton

    yield not has_triton(), f"{flash} needs {TRITON_NEEDS}; install them, or drop the flag"
    dropout, cp = args.attention_dropout, args.context_parallel_size
    yield dropout > 0, f"{flash} has no --attention-dropout {dropout}; pass 0"
    yield cp > 1, f"{flash} has no --context-parallel-size {cp}; drop --attention-backend"
    yield (
        args.reset_attention_mask,
        f"{flash} takes no --reset-attention-mask; use --dataloader-inter-document-masking",
    )


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
    yield (
        args.moe_grouped_gemm and bool(args.fp8) and args.geometry == "lorentz",
        "--moe-grouped-gemm: HELM's grouped experts know no FP8; drop it, or --fp8-format",
    )
    experts, freq = args.num_experts, args.moe_layer_freq
    yield (
        args.moe_router_topk > experts,
        f"--moe-router-topk {args.moe_router_topk}: there are only {experts} experts",
    )
    yield (
        freq < 1 if isinstance(freq, int) else len(freq) != args.num_layers,
        f"--moe-layer-freq {freq}: a positive number, or a 0 or 1 for each of the "
        f"{args.num_layers} layers",
    )
    proportional = args.mice_bias_update == "proportional"
    yield (
        proportional
        and args.mice_routing != "reference"
        and not args.moe_router_enable_expert_bias,
        "--mice-bias-update proportional: Megatron's routing has no bias without "
        "--moe-router-enable-expert-bias; pass it, or --mice-routing reference",
    )
    if args.mice_routing == "reference":
        yield from _reference_routing_rules(args)
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


def _loss_rules(args: argparse.Namespace) -> Rules:
    chunk = args.logits_chunk_size
    yield chunk is not None and chunk < 1, f"--logits-chunk-size {chunk}: must be 1 or more"
    native = args.cross_entropy_loss_fusion and args.cross_entropy_fusion_impl == "native"
    yield (
        native and not args.bf16,
        "--cross-entropy-fusion-impl native: rounds its gradient to bf16; pass --bf16, or drop "
        "--cross-entropy-loss-fusion",
    )


# What Riemannian Adam does not work with: Megatron's attribute, and its harmless value.
_NOT_WITH_POINTS = {
    "use_precision_aware_optimizer": False,
    "optimizer_cpu_offload": False,
    "optimizer_cuda_graph": False,
}


def _optimizer_rules(args: argparse.Namespace) -> Rules:
    for flag in ("embedding_lr_mult", "curvature_lr_mult"):
        factor = getattr(args, flag)
        yield not (0 <= factor < math.inf), f"{flag_of(flag)} {factor}: must be 0 or more"
    lorentz = args.geometry == args.helm_embedding == "lorentz"
    if not lorentz or args.embedding_optimizer != "riemannian":
        return
    instead = "or train the table by --embedding-optimizer adam"
    yield (
        args.optimizer != "adam",
        f"--optimizer {args.optimizer}: Riemannian Adam goes with adam; pass it, {instead}",
    )
    yield (
        not args.untie_embeddings_and_output_weights,
        "--untie-embeddings-and-output-weights is missing: a table of points is no weight of "
        f"logits; pass it, {instead}",
    )
    for flag, harmless in _NOT_WITH_POINTS.items():
        yield (
            getattr(args, flag, harmless) != harmless,
            f"{flag_of(flag)}: not with Riemannian Adam; drop it, {instead}",
        )
    yield (
        args.decoupled_lr is not None and args.embedding_lr_mult != 1,
        f"--decoupled-lr {args.decoupled_lr}: is the embedding's rate already; drop "
        "--embedding-lr-mult",
    )


def _reference_routing_rules(args: argparse.Namespace) -> Rules:
    released = "--mice-routing reference is the released rule:"
    yield (
        args.moe_expert_capacity_factor is not None,
        f"{released} it drops no token; drop --moe-expert-capacity-factor",
    )
    balancing = args.moe_router_load_balancing_type
    kinds = [balancing] if isinstance(balancing, str) else balancing
    yield (
        not set(kinds) <= {"aux_loss", "seq_aux_loss", "global_aux_loss", "none"},
        f"{released} --moe-router-load-balancing-type {balancing} is not part of it",
    )
    groups = args.moe_router_num_groups or 1
    yield (
        groups > 1 and args.num_experts // groups < 2,
        f"{released} it scores a group by two experts; --moe-router-num-groups {groups} has fewer",
    )


def _data_rules(args: argparse.Namespace) -> Rules:
    if args.mock_data:
        return
    try:
        prefixes_of(args)
        if args.split is not None:
            parse_split(args.split)
    except DataError as error:
        yield True, str(error)


def _layout_rules(args: argparse.Namespace) -> Rules:
    impl = args.transformer_impl
    yield (
        impl not in ("local", "transformer_engine"),
        f"--transformer-impl {impl}: use local or transformer_engine",
    )
    yield (
        impl == "transformer_engine" and not has_transformer_engine(),
        "--transformer-impl transformer_engine: Transformer Engine is not installed; install the "
        "extra `te`, or pass --transformer-impl local",
    )
    for flag in ("tensor_model_parallel_size", "expert_model_parallel_size"):
        yield getattr(args, flag) < 1, f"{flag_of(flag)} {getattr(args, flag)}: must be positive"
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
