"""HELM's command-line flags beside Megatron's, and the config that they name.

Every HELM model takes Megatron's own flags; those here say only what Megatron has no word for.
"""

from __future__ import annotations

import argparse
import importlib.util
from typing import Any

from megatron.training.argument_utils import core_transformer_config_from_args

from helm_megatron.config import HelmSettings
from helm_megatron.transformer_config import HelmTransformerConfig, with_settings

# Megatron's attributes of a pipeline of one stage, without recomputation: what rebuilds a run's
# model elsewhere sets them.
ONE_STAGE: dict[str, Any] = {
    "pipeline_model_parallel_size": 1,
    "virtual_pipeline_model_parallel_size": None,
    "num_layers_per_virtual_pipeline_stage": None,
    "num_virtual_stages_per_pipeline_rank": None,
    "pipeline_model_parallel_layout": None,
    "decoder_first_pipeline_num_layers": None,
    "decoder_last_pipeline_num_layers": None,
    "account_for_embedding_in_pipeline_split": False,
    "account_for_loss_in_pipeline_split": False,
    "recompute_granularity": None,
    "recompute_method": None,
    "recompute_num_layers": None,
}


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
    _add_curvature_args(group)
    group.add_argument(
        "--helm-embedding",
        choices=["euclidean", "lorentz"],
        default="euclidean",
        help="euclidean: a free table, read as space coordinates; lorentz: points at "
        "--embedding-curvature, rescaled to --curvature, updated by --embedding-optimizer.",
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
    _add_loss_args(parser)
    _add_optimizer_args(parser)
    _add_mice_args(parser)
    return parser


def _add_loss_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("helm loss", "beside Megatron's --cross-entropy-loss-fusion")
    group.add_argument(
        "--logits-chunk-size",
        type=int,
        default=None,
        metavar="TOKENS",
        help="Compute logits and loss of so many positions of a sequence at a time, and again in "
        "the backward pass: the logits of all others take no memory (default: all at once).",
    )


def _add_curvature_args(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--curvature", type=float, default=1.0, help="c of the hidden activations (default 1)."
    )
    group.add_argument(
        "--layer-curvature",
        type=float,
        nargs="+",
        default=None,
        metavar="C",
        help="c within the layers: one value, or the first and the last layer's, the others spaced "
        "evenly (default: --curvature, which is that between layers).",
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


def _add_optimizer_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("helm optimizer", "beside Megatron's --optimizer adam")
    group.add_argument(
        "--embedding-optimizer",
        choices=["riemannian", "adam"],
        default="riemannian",
        help="Of a --helm-embedding lorentz: Riemannian Adam on its points, without weight decay, "
        "or --optimizer on their space coordinates. A euclidean table takes --optimizer.",
    )
    group.add_argument(
        "--embedding-retraction",
        action="store_true",
        help="Riemannian Adam steps straight in space coordinates, not along the geodesic.",
    )
    group.add_argument(
        "--embedding-lr-mult",
        type=float,
        default=1.0,
        help="Learning rate of Riemannian Adam, as a multiple of --lr and --min-lr (default 1).",
    )
    group.add_argument(
        "--curvature-lr-mult",
        type=float,
        default=1.0,
        help="Learning rate of the curvatures, as a multiple of --lr and --min-lr (default 1).",
    )
    group.add_argument(
        "--weight-decay-groups",
        choices=["megatron", "reference"],
        default="megatron",
        help="What decays: megatron: matrices, the time weights of Lorentz linears with them; "
        "reference: what decays in the released code, which is all but biases, learned residual "
        "scales, HELM-D's attention temperatures and HELM-MiCE's norms. Points and curvatures "
        "never do.",
    )


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
        help="Expert selection: Megatron's router, or the released rule, to import checkpoints (a "
        "selection bias for softmax scores too; groups scored by their two best).",
    )
    group.add_argument(
        "--mice-bias-update",
        choices=["sign", "proportional"],
        default="sign",
        help="How the selection bias follows the experts' loads, at --moe-router-bias-update-rate: "
        "sign: Megatron's rule, with --moe-router-enable-expert-bias; proportional: the released "
        "one, for --mice-routing reference with any scores.",
    )


def helm_settings_from_args(args: argparse.Namespace) -> HelmSettings:
    """The hyperbolic settings that the flags name."""
    mice = args.multi_latent_attention or args.num_experts is not None
    low, high = args.mice_curvature_init[0], args.mice_curvature_init[-1]

    def or_hidden(curvature: float | None) -> float:
        return args.curvature if curvature is None else curvature

    return HelmSettings(
        geometry=args.geometry,
        curvature=args.curvature,
        embedding_curvature=or_hidden(args.embedding_curvature),
        output_curvature=or_hidden(args.output_curvature),
        layer_curvature=args.layer_curvature
        and (args.layer_curvature[0], args.layer_curvature[-1]),
        linear_bias=not args.disable_lorentz_bias,
        residual_scale=args.residual_scale or (1.0 if mice else 4.0),
        learn_residual_scale=args.learn_residual_scale,
        embedding=args.helm_embedding,
        embedding_optimizer=args.embedding_optimizer,
        embedding_retraction=args.embedding_retraction,
        embedding_lr_mult=args.embedding_lr_mult,
        curvature_lr_mult=args.curvature_lr_mult,
        weight_decay_groups=args.weight_decay_groups,
        mice_combine=args.mice_combine,
        mice_routing=args.mice_routing,
        mice_bias_update=args.mice_bias_update,
        mice_curvature_init=(low, high),
        mice_learn_curvature=not args.mice_fixed_curvature,
        logits_chunk_size=args.logits_chunk_size,
    )


def _drop_missing_fusions(args: argparse.Namespace) -> None:
    """Turn off what Megatron has on by default and then refuses without optional libraries."""
    if importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is None:
        args.gradient_accumulation_fusion = False
    if args.multi_latent_attention or importlib.util.find_spec("transformer_engine") is None:
        args.apply_rope_fusion = False


def config_from_args(args: argparse.Namespace) -> HelmTransformerConfig:
    """Megatron's transformer config, with the hyperbolic settings."""
    _drop_missing_fusions(args)
    return with_settings(core_transformer_config_from_args(args), helm_settings_from_args(args))
