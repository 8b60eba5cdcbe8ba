"""A package for ``sandbox.preload``: forks fail as if processes were short, as often as a file beside the zygote's log says."""

from __future__ import annotations

import errno
import os
from pathlib import Path

TICKETS = Path(os.environ["HOME"]) / "failures"
"""One byte a failure that is still to come."""

_fork = os.fork


def _scarce() -> int:
    if TICKETS.exists() and TICKETS.stat().st_size:
        os.truncate(TICKETS, TICKETS.stat().st_size - 1)
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return _fork()


os.fork = _scarce
