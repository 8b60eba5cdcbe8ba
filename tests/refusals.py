"""What is refused, by the recipe's field, the file or the option at fault, and not by the words of a message."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from aster.errors import UserError

PRINTED = "aster: error: "
"""What the command line writes before a message."""


@contextmanager
def refused(field: str, *named: str) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """What is done here must raise a UserError, in one line, whose ``field`` is this one or goes on from it:

        with refused("rl"):           # rl, rl.steps, rl.stages.0.steps; not rlx
            load_recipe(path)
        with refused(str(path)):      # the file, or "FILE, line 3"
            iterate_set(path)

    The message must also hold each text of ``named``: a value, an option, a file. What it must say beyond that is in
    ``caught.value`` of what this yields."""
    with pytest.raises(UserError) as caught:
        yield caught
    require(caught.value, field, *named)


def printed(err: str) -> UserError:
    """The error that a command wrote to its stderr, which must be one."""
    (message,) = [line.removeprefix(PRINTED) for line in err.splitlines() if line.startswith(PRINTED)]
    return UserError(message)


def require(error: UserError, field: str, *named: str) -> None:
    """Assert that an error is in one line, names the field, or something within it, and holds each text of ``named``."""
    assert "\n" not in str(error)
    assert re.match(rf"{re.escape(field)}(?!\w)", error.field), f"refused {error.field!r}, not {field!r}: {error}"
    assert [name for name in named if name not in str(error)] == [], str(error)
