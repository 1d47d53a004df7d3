"""The error that the evaluation shows its user as one line."""

from helm_megatron.errors import HelmError


class EvaluationError(HelmError):
    """An evaluation that cannot be done; the message says what is wrong, where, how to mend it."""
