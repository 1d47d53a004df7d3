"""The error that a study shows its user as one line."""

from helm_megatron.errors import HelmError


class StudyError(HelmError):
    """A study that cannot be done; the message says what is wrong, where, how to mend it."""
