"""The limits of a session's process: a cell may lower its own, and the next one has them as they were."""

from __future__ import annotations

import resource
from collections.abc import Callable
from resource import getrlimit
from typing import Any

_set = resource.setrlimit
_set_by_a_cell = False
"""``setrlimit`` or ``prlimit`` was called, by whatever code."""
RESERVE_BYTES = 64 << 20
"""Address space beyond a cell's limit in which its MemoryError is reported and the next cell is compiled."""
KINDS = (
    resource.RLIMIT_CPU,
    resource.RLIMIT_DATA,
    resource.RLIMIT_FSIZE,
    resource.RLIMIT_NOFILE,
    resource.RLIMIT_NPROC,
    resource.RLIMIT_STACK,
)


class Limits:
    """Remembers this process's resource limits, and restores them after a cell has changed them."""

    def __init__(self, address_space: int) -> None:
        """``address_space``: bytes that a cell's code may have."""
        most = address_space + RESERVE_BYTES
        _, hard = getrlimit(resource.RLIMIT_AS)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        self._in_cell, self._between = (min(address_space, most), most), (most, most)
        self.touched = False
        """A cell has named limits: to ask for all of them after each cell would cost too much."""
        self._others = [(kind, getrlimit(kind)) for kind in KINDS]
        self.raise_memory()

    def restore(self) -> None:
        """Undo what a cell changed, if one did. ValueError where that is impossible: it has lowered what nobody can raise
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
        """Lift that limit: the cell's code has ended, and there must be memory to report a MemoryError. Where a cell has
        lowered what nobody can raise again, it stays so; the next ``restore`` tells."""
        try:
            _set(resource.RLIMIT_AS, self._between)
        except ValueError:
            self.touched = True


def keep_hard_limits() -> None:
    """Have ``resource.setrlimit`` and ``prlimit``, which cells call to limit themselves, lower soft limits alone: nobody could
    raise the hard ones again, and they would hold for every later cell."""
    resource.setrlimit = _soft(resource.setrlimit, 1)
    resource.prlimit = _soft(resource.prlimit, 2)


def _soft(original: Callable[..., Any], place: int) -> Callable[..., Any]:
    """``original``, whose argument at ``place`` is a pair of limits, after the kind."""

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
