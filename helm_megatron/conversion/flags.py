"""The Megatron arguments of a Hugging Face config, as its command line would give them."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Sequence
from typing import Any

from megatron.training.arguments import validate_args

from helm_megatron import command_line
from helm_megatron.checks import ArgumentError, megatrons_refusals
from helm_megatron.conversion import settings
from helm_megatron.conversion.settings import SettingsError
from helm_megatron.hf.configuration_helm import HelmConfig

# Fields of a config that a conversion does not carry over.
_NOT_THE_MODEL = {
    "architectures",
    "auto_map",
    "bos_token_id",
    "code_version",
    "eos_token_id",
    "pad_token_id",
    "transformers_version",
    "use_cache",
    "_name_or_path",
}
_COMMON = (
    "--swiglu --normalization RMSNorm --disable-bias-linear --position-embedding-type rope "
    "--hidden-dropout 0 --attention-dropout 0 --micro-batch-size 1"
).split()
_SIZES = {
    "num_hidden_layers": "--num-layers",
    "hidden_size": "--hidden-size",
    "intermediate_size": "--ffn-hidden-size",
    "num_attention_heads": "--num-attention-heads",
    "max_position_embeddings": "--max-position-embeddings",
    "rms_norm_eps": "--norm-epsilon",
    "initializer_range": "--init-method-std",
}
_LATENT = {
    "q_lora_rank": "--q-lora-rank",
    "kv_lora_rank": "--kv-lora-rank",
    "qk_nope_head_dim": "--qk-head-dim",
    "qk_rope_head_dim": "--qk-pos-emb-head-dim",
    "v_head_dim": "--v-head-dim",
}
_EXPERTS = {
    "n_routed_experts": "--num-experts",
    "num_experts_per_tok": "--moe-router-topk",
    "moe_intermediate_size": "--moe-ffn-hidden-size",
    "shared_expert_intermediate_size": "--moe-shared-expert-intermediate-size",
    "scoring_func": "--moe-router-score-function",
    "n_group": "--moe-router-num-groups",
    "topk_group": "--moe-router-group-topk",
    "routed_scaling_factor": "--moe-router-topk-scaling-factor",
}
_LORENTZ = {
    "curvature": "--curvature",
    "embedding_curvature": "--embedding-curvature",
    "output_curvature": "--output-curvature",
    "residual_scale": "--residual-scale",
    "embedding": "--helm-embedding",
    "mice_combine": "--mice-combine",
    "mice_routing": "--mice-routing",
}
_YARN = {
    "factor": "--rotary-scaling-factor",
    "original_max_position_embeddings": "--yarn-original-max-position-embeddings",
    "beta_fast": "--yarn-beta-fast",
    "beta_slow": "--yarn-beta-slow",
    "mscale": "--mscale",
    "mscale_all_dim": "--mscale-all-dim",
}


def arguments_of(
    config: HelmConfig, padded_vocab_size: int, others: Sequence[str] = ()
) -> argparse.Namespace:
    """Megatron's validated arguments of the model that the config describes, and `others`.

    Raises:
        SettingsError: Megatron's flags cannot name that model.
    """
    flags = [*model_flags(config), "--padded-vocab-size", str(padded_vocab_size), *others]
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Megatron would list them all
            args = command_line.parse(flags)
            with megatrons_refusals():
                validate_args(args)
    except ArgumentError as error:
        raise SettingsError(f"Megatron refuses the model of config.json: {error}") from error
    args.vocab_size = config.vocab_size
    back = settings.hf_config(settings.one_process_model_config(args), config.vocab_size)
    ours, theirs = config.to_dict(), back.to_dict()
    for name in ours.keys() - _NOT_THE_MODEL:
        if ours[name] != theirs.get(name):
            raise SettingsError(
                f"config.json: Megatron has no model with {name} {ours[name]!r} beside the rest "
                f"(the nearest has {theirs.get(name)!r})"
            )
    return args


def model_flags(config: HelmConfig) -> list[str]:
    """The flags of `pretrain_helm.py` that describe the model, its vocabulary apart."""
    flags = [*_COMMON, *_named(config, _SIZES), "--seq-length", str(config.max_position_embeddings)]
    flags += ["--geometry", config.geometry, "--vocab-size", str(config.vocab_size)]
    flags += ["--tokenizer-type", "NullTokenizer"]
    if not config.tie_word_embeddings:
        flags.append("--untie-embeddings-and-output-weights")
    if config.rope_interleaved and config.kv_lora_rank is None:
        flags.append("--rotary-interleaved")
    flags += _attention(config) + _rope(config)
    if config.n_routed_experts is not None:
        flags += _moe(config)
    if config.geometry == "lorentz":
        flags += _named(config, _LORENTZ)
        if within := config.layer_curvatures:
            flags += ["--layer-curvature", str(within[0]), str(within[-1])]
        flags += [] if config.linear_bias else ["--disable-lorentz-bias"]
        flags += ["--learn-residual-scale"] if config.learn_residual_scale else []
    types = {"bfloat16": ["--bf16"], "float16": ["--fp16"], "float32": []}
    dtype = str(config.dtype).removeprefix("torch.")
    if dtype not in types:
        raise SettingsError(f"config.json: Megatron trains no {dtype} parameters")
    return flags + types[dtype]


def _named(config: Any, names: dict[str, str]) -> list[str]:
    values = {flag: getattr(config, name) for name, flag in names.items()}
    return [word for flag, v in values.items() if v is not None for word in (flag, str(v))]


def _attention(config: HelmConfig) -> list[str]:
    if config.kv_lora_rank is not None:
        # Megatron asks for them where the heads do not divide the hidden size; nothing reads them.
        channels = sum(filter(None, (config.qk_nope_head_dim, config.qk_rope_head_dim)))
        flags = ["--multi-latent-attention", "--kv-channels", str(channels)]
        return flags + _named(config, _LATENT)
    flags = ["--kv-channels", str(config.head_dim)]
    if config.num_key_value_heads != config.num_attention_heads:
        flags += ["--group-query-attention", "--num-query-groups", str(config.num_key_value_heads)]
    return flags + (["--qk-layernorm"] if config.qk_norm else [])


def _moe(config: HelmConfig) -> list[str]:
    flags = _named(config, _EXPERTS) + ["--moe-layer-freq", str(config.moe_layers).replace(" ", "")]
    flags += ["--moe-token-dispatcher-type", "alltoall", "--moe-router-load-balancing-type", "none"]
    flags += ["--moe-router-pre-softmax"] if config.softmax_before_choice else []
    own_bias = config.router_bias and config.scoring_func == "sigmoid"
    return flags + (["--moe-router-enable-expert-bias"] if own_bias else [])


def _rope(config: HelmConfig) -> list[str]:
    rope = dict(config.rope_parameters or {})
    kind, latent = rope["rope_type"], config.kv_lora_rank is not None
    theta = rope["rope_theta"]
    flags = ["--rotary-base", str(int(theta) if float(theta).is_integer() else theta)]
    flags += ["--rotary-percent", str(rope.get("partial_rotary_factor", 1.0))]
    if latent:
        flags += ["--rope-type", "yarn" if kind == "yarn" else "rope"]
    if kind == "yarn":
        values = argparse.Namespace(**{name: rope.get(name) for name in _YARN})
        flags += _named(values, _YARN)
    elif kind == "llama3":
        flags += ["--use-rope-scaling", "--rope-scaling-factor", str(rope["factor"])]
    elif kind == "linear":
        flags += ["--rotary-seq-len-interpolation-factor", str(int(rope["factor"]))]
    return flags
