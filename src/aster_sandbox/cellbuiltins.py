"""The ``builtins`` module that cells see: a copy, so that a cell which breaks it breaks neither libraries nor this package."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from aster_sandbox import magics, shown
from aster_sandbox.display import display
from aster_sandbox.streams import Streams

_touched = False
"""Whether a cell may have changed the builtins."""


class _Builtins(ModuleType):
    """Records that an attribute was changed. (A change through ``__dict__`` is not seen here; ``restore`` looks for it in the
    cell's source.)"""

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
_ours.__dict__.update(magics.BUILTINS, display=display)
_whole: dict[str, Any] = dict(_ours.__dict__)
"""The contents that each cell starts with."""


def module() -> ModuleType:
    """The ``builtins`` module of cells."""
    return _ours


def enter(streams: Streams, mark: Callable[[], str], home: str, echo: str) -> Callable[[Any], None]:
    """Install the copy and the display hook for cells' last expressions in a session process. Returns the hook.

    ``mark`` returns the current cell's line mark (``protocol.line_mark``); ``home`` is the working directory."""
    sys.modules["builtins"] = _ours
    shown.enter(streams, mark, home, echo)
    text_of, write = shown.text_of, shown.write

    def show(value: Any) -> None:
        """Print a value on its own line, as Python's prompt does."""
        if value is None:
            return
        _ours.__dict__["_"] = None
        write(text_of(value))
        _ours.__dict__["_"] = value

    sys.displayhook = show
    return show


def restore(source: str) -> None:
    """Restore, after a cell, the names that it changed or removed. Names that it added stay.

    Restores only after a cell has mentioned builtins or changed an attribute: comparing all names would make every session copy
    the memory pages that they are on.
    """
    global _touched
    _touched = _touched or "builtins" in source
    if _touched:
        _ours.__dict__.update(_whole)
