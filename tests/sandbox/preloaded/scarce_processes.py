"""A package for ``sandbox.preload`` that makes forks fail with EAGAIN, as often as a file beside the zygote's log says."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

TICKETS = Path(os.environ["HOME"]) / "failures"
"""One byte for each failure that is still to come."""

_fork = os.fork


def _take_ticket() -> bool:
    """Whether this fork should fail. Takes one byte off the file, locked, because several processes fork at once."""
    if not TICKETS.exists():
        return False
    with TICKETS.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        left = os.fstat(file.fileno()).st_size
        if left:
            file.truncate(left - 1)
    return left > 0


def _scarce() -> int:
    if _take_ticket():
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return _fork()


os.fork = _scarce
