"""The builtins that cells see: a copy, so that a cell which breaks them breaks neither the library nor this package."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from aster_sandbox import magics, shown
from aster_sandbox.streams import Streams

_touched = False
"""A cell may have changed the builtins."""


class _Builtins(ModuleType):
    """Notes that a name was changed. (``__dict__`` can be changed too: ``restore`` sees that in a cell's source.)"""

    def __setattr__(self, name: str, value: Any) -> None:
        global _touched
        _touched = True
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        global _touched
        _touched = True
        super().__delattr__(name)


_ours = _Builtins("builtins", builtins.__doc__)
_ours.__dict__.update(builtins.__dict__)
_ours.__dict__.update(magics.BUILTINS, display=shown.display)
_whole: dict[str, Any] = dict(_ours.__dict__)
"""As each cell finds them."""


def module() -> ModuleType:
    """The copy."""
    return _ours


def enter(streams: Streams, mark: Callable[[], str], home: str, echo: str) -> Callable[[Any], None]:
    """Put the copy in place in a session's process, and the way a cell's last expression is shown. Returns that.

    ``mark`` gives what begins a new line in the present cell's output, ``home`` is the working directory."""
    sys.modules["builtins"] = _ours
    shown.enter(streams, mark, home, echo)
    text_of, write = shown.text_of, shown.write

    def show(value: Any) -> None:
        """Print a value as a prompt does, on a line of its own."""
        if value is None:
            return
        _ours.__dict__["_"] = None
        write(text_of(value))
        _ours.__dict__["_"] = value

    sys.displayhook = show
    return show


def restore(source: str) -> None:
    """After a cell: names that it changed or removed are as they were. What it added stays.

    To compare them all would have every session copy the pages that they are on, so this looks only once a cell has named them.
    """
    global _touched
    _touched = _touched or "builtins" in source
    if _touched:
        _ours.__dict__.update(_whole)
