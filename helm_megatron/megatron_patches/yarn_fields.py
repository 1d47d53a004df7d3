"""YaRN's flags reach latent attention.

Upstream: Megatron 0.19 gives the `--yarn-...` flags to its other rotary tables only; those of
latent attention keep the defaults of `MLATransformerConfig`.
Here: they are set in its config.
Goes: when Megatron's config of latent attention has them.
"""

import argparse
import functools
from typing import Any

UPSTREAM = {"megatron.training.argument_utils._apply_yarn_config_from_args": "0c762f7025ca"}


def apply() -> None:
    """Replace what ends the making of a config from arguments."""
    from megatron.training import argument_utils

    apply_yarn_config = argument_utils._apply_yarn_config_from_args

    @functools.wraps(apply_yarn_config)
    def also_to_latent_attention(config: Any, args: argparse.Namespace) -> None:
        apply_yarn_config(config, args)
        if args.multi_latent_attention:
            for name in ("original_max_position_embeddings", "beta_fast", "beta_slow"):
                if (value := getattr(args, f"yarn_{name}", None)) is not None:
                    setattr(config, name, value)

    argument_utils._apply_yarn_config_from_args = also_to_latent_attention
