"""The exception for what a user can fix, and the text of other errors in one line."""

from __future__ import annotations


class UserError(Exception):
    """Bad input: a file, a field, an option or a value that the user gave. The command line prints the message only and exits
    with code 2.

    The message is one line: what is at fault, a colon, what is wrong, and what to do about it, without a full stop at the end.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        """``field``: where the message does not begin with what is at fault, as with a recipe's file before its field."""
        super().__init__(message)
        self._field = field

    @property
    def field(self) -> str:
        """What is at fault: a recipe's field (``rl.steps``), a file (``data.jsonl, line 3``), an option (``--shard 1/0``), or a
        stage or part (``grading``). It is the message's text up to the first ``": "``, unless the error was given another;
        empty where there is neither."""
        if self._field is not None:
            return self._field
        named, colon, _ = str(self).partition(": ")
        return named if colon else ""


def one_line(text: object, longest: int | None = 300) -> str:
    """The text of an exception or of a server's answer, in one line of at most ``longest`` characters (None: of any length).
    For an exception without a text, the name of its type."""
    line = " ".join(str(text).split())
    if not line and isinstance(text, BaseException):
        line = type(text).__name__
    return line[:longest]
