"""The resource limits of a session process. A cell may lower them for itself; they are restored for the next cell."""

from __future__ import annotations

import resource
from collections.abc import Callable
from resource import getrlimit
from typing import Any

_set = resource.setrlimit
_set_by_a_cell = False
"""Whether ``setrlimit`` or ``prlimit`` has been called."""
RESERVE_BYTES = 64 << 20
"""Address space beyond a cell's limit, for reporting its MemoryError and compiling the next cell."""
KINDS = (
    resource.RLIMIT_CPU,
    resource.RLIMIT_DATA,
    resource.RLIMIT_FSIZE,
    resource.RLIMIT_NOFILE,
    resource.RLIMIT_NPROC,
    resource.RLIMIT_STACK,
)


class Limits:
    """Records this process's resource limits and restores them after a cell has changed them."""

    def __init__(self, address_space: int) -> None:
        """``address_space``: limit for a cell's code, in bytes."""
        most = address_space + RESERVE_BYTES
        _, hard = getrlimit(resource.RLIMIT_AS)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        self._in_cell, self._between = (min(address_space, most), most), (most, most)
        self.touched = False
        """Whether a cell's code has mentioned limits. Only then are they checked, because a check after each cell is slow."""
        self._others = [(kind, getrlimit(kind)) for kind in KINDS]
        self.raise_memory()

    def restore(self) -> None:
        """Undo a cell's changes, if there were any. Raises ValueError if a cell lowered a hard limit, which cannot be raised
        again."""
        if not (self.touched or _set_by_a_cell):
            return
        for kind, limits in self._others:
            if getrlimit(kind) != limits:
                _set(kind, limits)
        if getrlimit(resource.RLIMIT_AS) != self._between:
            _set(resource.RLIMIT_AS, self._between)

    def lower_memory(self) -> None:
        """Set the address-space limit that a cell's code runs under."""
        _set(resource.RLIMIT_AS, self._in_cell)

    def raise_memory(self) -> None:
        """Lift that limit after the cell's code has ended, so that there is memory to report a MemoryError.

        If the cell lowered the hard limit, nothing happens here; the next ``restore`` raises."""
        try:
            _set(resource.RLIMIT_AS, self._between)
        except ValueError:
            self.touched = True


def keep_hard_limits() -> None:
    """Make ``resource.setrlimit`` and ``prlimit`` lower only soft limits. Hard limits could not be raised again and would apply
    to every later cell."""
    resource.setrlimit = _soft(resource.setrlimit, 1)
    resource.prlimit = _soft(resource.prlimit, 2)


def _soft(original: Callable[..., Any], place: int) -> Callable[..., Any]:
    """Wrap ``original``, whose argument at index ``place`` is a pair of limits and the one before it their kind."""

    def limited(*arguments: Any) -> Any:
        global _set_by_a_cell
        _set_by_a_cell = True
        if len(arguments) > place and arguments[place] is not None:
            kind, (soft, hard) = arguments[place - 1], arguments[place]
            most = getrlimit(kind)[1]
            if not _beyond(hard, most):
                arguments = (*arguments[:place], (soft, most), *arguments[place + 1 :])
        return original(*arguments)

    limited.__name__ = original.__name__
    limited.__doc__ = original.__doc__
    return limited


def _beyond(limit: int, most: int) -> bool:
    if most == resource.RLIM_INFINITY:
        return False
    return limit == resource.RLIM_INFINITY or limit > most
