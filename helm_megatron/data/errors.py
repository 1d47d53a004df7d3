"""The error that the data tools show their user as one line."""

from helm_megatron.errors import HelmError


class DataError(HelmError):
    """Input that cannot be used; the message says what is wrong, where, and how to mend it."""
