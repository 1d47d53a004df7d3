"""The error that every program ends with in one line."""


class HelmError(Exception):
    """What the user can mend: the message, one line, says what is wrong, where, and how to mend it.

    Each part of the package has its own subclass; programs catch this class, print the message and
    return a code other than 0. Any other error is a bug, and keeps its traceback.
    """
