"""The tools say in lines of their own what they do; libraries are to speak of errors only."""

import logging
import warnings

import transformers


def quiet() -> None:
    """Silence what Megatron, torch and transformers say about a conversion that goes well."""
    # Megatron puts a handler for INFO on the root logger, to stdout.
    logging.getLogger().setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="torch|megatron")
