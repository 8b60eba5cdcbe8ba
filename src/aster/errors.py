"""The one exception that means "the user can fix this", and others' errors in one line of its message."""

from __future__ import annotations


class UserError(Exception):
    """Bad input: a file, a field or a value the user gave. The command line prints the message alone and exits with code 2.

    The message is one line that names the file, field or value and says what to do. No full stop ends it.
    """


def one_line(said: object, longest: int | None = 300) -> str:
    """What an exception or a server said, in one line of at most ``longest`` characters (None: however long it is). An
    exception that says nothing is named by its type."""
    text = " ".join(str(said).split())
    if not text and isinstance(said, BaseException):
        text = type(said).__name__
    return text[:longest]
