"""The error that the data tools show their user as one line."""


class DataError(ValueError):
    """Input that cannot be used; the message says what is wrong, where, and how to mend it."""
