"""Whether a checkpoint is of the model that the command line describes.

Parameters of another geometry or curvature mostly have the same names and shapes: they would load
without complaint and be another model. Megatron saves its arguments in every checkpoint; those of
the checkpoint and of the run are compared before anything is built.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from torch.distributed.checkpoint.api import CheckpointException

from helm_megatron.arguments import add_helm_args, helm_settings_from_args
from helm_megatron.checkpoint import files
from helm_megatron.checkpoint.failures import reason
from helm_megatron.checkpoint.files import CheckpointError, whole_iterations
from helm_megatron.checks import ArgumentError, flag_of

# Of the model's function, with no trace in a name or shape, and not in Megatron's own copy either.
_NOT_COPIED = """
    rope_type use_rope_scaling rope_scaling_factor rotary_seq_len_interpolation_factor
    rotary_scaling_factor yarn_original_max_position_embeddings yarn_beta_fast yarn_beta_slow mscale
    mscale_all_dim layernorm_epsilon moe_router_num_groups moe_router_group_topk
""".split()
# Megatron's `--use-checkpoint-args` copies most of a dense architecture; these complete the copy.
_LATENT = "q_lora_rank kv_lora_rank qk_head_dim qk_pos_emb_head_dim v_head_dim".split()
ARCHITECTURE = ["multi_latent_attention", *_LATENT, "qk_layernorm", *_NOT_COPIED]
# What changes the model's function and no name or shape of a tensor, and may be changed on purpose:
# for longer texts the rotary base.
FUNCTION = [
    *("rotary_base", "rotary_percent", "rotary_interleaved", *_NOT_COPIED),
    *("moe_router_topk", "moe_router_score_function", "moe_router_pre_softmax"),
    "moe_router_topk_scaling_factor",
]
# Of the run, not of the model: they may change from run to run.
TRAINING = {"mice_fixed_curvature"}


def saved_args(folder: Path) -> argparse.Namespace | None:
    """The arguments of the run that saved a torch_dist checkpoint, if it has any.

    Raises:
        CheckpointError: they cannot be read.
    """
    return common_state(folder).get("args")


def common_state(folder: Path) -> dict[str, Any]:
    """What a torch_dist checkpoint has besides its tensors; of another format nothing.

    Raises:
        CheckpointError: it cannot be read.
    """
    if not dist_checkpointing.check_is_distributed_checkpoint(str(folder)):
        return {}
    files.check_common_state(folder)
    try:
        return dist_checkpointing.load_common_state_dict(str(folder))
    except (Exception, CheckpointException) as error:  # unpickling damaged data raises anything
        raise CheckpointError(
            f"{folder}: its arguments cannot be read: {reason(error)} "
            f"({whole_iterations(folder.parent, without=folder)})"
        ) from error


def defaults_from(saved: argparse.Namespace) -> dict[str, Any]:
    """What `--use-checkpoint-args` takes from a checkpoint besides Megatron's own list."""
    wanted = (set(_defaults()) | set(ARCHITECTURE)) - TRAINING
    return {name: value for name, value in vars(saved).items() if name in wanted}


def with_defaults(saved: argparse.Namespace) -> argparse.Namespace:
    """A checkpoint's arguments; a flag that is younger than it was then what is its default now."""
    return argparse.Namespace(**_defaults() | vars(saved))


def loads_optimizer(args: argparse.Namespace, saved: argparse.Namespace, folder: Path) -> bool:
    """Whether a run takes up the optimizer and the schedule of a checkpoint."""
    fresh = args.finetune or args.no_load_optim or folder.name == "release"
    return not fresh and not saved.no_save_optim


def _defaults() -> dict[str, Any]:
    """HELM's flags without a command line."""
    return vars(add_helm_args(argparse.ArgumentParser()).parse_args([]))


def check_compatible(args: argparse.Namespace, saved: argparse.Namespace, folder: Path) -> None:
    """Refuse a checkpoint of another model.

    Raises:
        ArgumentError: for the first flag that differs, with both values.
    """
    if not hasattr(saved, "geometry"):
        raise ArgumentError(
            f"--load {folder}: not a checkpoint of pretrain_helm.py: its arguments have no geometry"
        )
    saved = with_defaults(saved)
    for flag, theirs, ours in _differences(args, saved):
        if theirs != ours:
            raise ArgumentError(
                f"{flag} {_shown(ours)}: the checkpoint {folder} has {_shown(theirs)}; "
                "pass the same, or --use-checkpoint-args without the flag"
            )
    learns, learned = (not a.mice_fixed_curvature for a in (args, saved))
    loads = loads_optimizer(args, saved, folder)
    if args.num_experts and learns and not learned and loads:
        raise ArgumentError(
            f"--mice-fixed-curvature is missing: the checkpoint {folder} has it, and so no "
            "optimizer state of the curvatures; to learn them from now on pass --no-load-optim"
        )
    trains = [(a.helm_embedding, a.embedding_optimizer) for a in (args, saved)]
    if trains[0][0] == "lorentz" and trains[0] != trains[1] and loads:
        raise ArgumentError(
            f"--embedding-optimizer {trains[0][1]}: the checkpoint {folder} has {trains[1][1]}, "
            "and so another state of the embedding; pass the same, or --no-load-optim"
        )


def changes(args: argparse.Namespace, saved: argparse.Namespace) -> list[str]:
    """Each flag by which the run computes another function of the checkpoint's parameters."""
    theirs, ours = vars(saved), vars(args)
    return [
        f"{flag_of(name)} {_shown(ours[name])}: the checkpoint has {_shown(theirs[name])}"
        for name in FUNCTION
        if name in theirs and ours[name] != theirs[name]
    ]


def _differences(args: argparse.Namespace, saved: argparse.Namespace) -> list[tuple[str, Any, Any]]:
    """Flag, its value in the checkpoint and its value here, of all that must be the same."""
    names = ["num_layers", "hidden_size", "num_attention_heads", "num_experts"]
    pairs = [(name, getattr(saved, name, None), getattr(args, name)) for name in names]
    theirs, ours = helm_settings_from_args(saved), helm_settings_from_args(args)
    fields = ["geometry"]
    if ours.geometry == theirs.geometry == "lorentz":
        fields += "curvature layer_curvature embedding_curvature output_curvature embedding".split()
        fields += "linear_bias residual_scale learn_residual_scale".split()
        if args.num_experts:
            fields += ["mice_combine", "mice_routing"]
    pairs = [(f, getattr(theirs, f), getattr(ours, f)) for f in fields] + pairs
    flags = {"embedding": "helm_embedding", "linear_bias": "disable_lorentz_bias"}
    return [
        (
            "--" + flags.get(name, name).replace("_", "-"),
            *((not a, not b) if name == "linear_bias" else (a, b)),
        )
        for name, a, b in pairs
    ]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "(given)" if value else "(not given)"
    return "(none)" if value is None else str(value)
