"""The error that the evaluation shows its user as one line."""


class EvaluationError(Exception):
    """An evaluation that cannot be done; the message says what is wrong, where, how to mend it."""
