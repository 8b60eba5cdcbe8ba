"""Stateful Python sessions: isolated interpreter processes, forked from one prewarmed parent and restored when they die.

See docs/sandbox.md. The names in ``__all__`` are the public interface. They are imported on first use, because the prewarmed
parent process imports this package too and needs none of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aster_sandbox.client import SandboxClient
    from aster_sandbox.commands import make_commands
    from aster_sandbox.errors import SandboxFailure, SettingsError
    from aster_sandbox.interface import AnySandbox, AnySession
    from aster_sandbox.isolation.doctor import describe_machine
    from aster_sandbox.opening import make_sandbox
    from aster_sandbox.session import Session
    from aster_sandbox.settings import Settings
    from aster_sandbox.supervisor import Sandbox
    from aster_sandbox.types import CellResult, CellStatus

_MODULES = {
    "AnySandbox": "interface",
    "AnySession": "interface",
    "CellResult": "types",
    "CellStatus": "types",
    "Sandbox": "supervisor",
    "SandboxClient": "client",
    "SandboxFailure": "errors",
    "Session": "session",
    "Settings": "settings",
    "SettingsError": "errors",
    "describe_machine": "isolation.doctor",
    "make_commands": "commands",
    "make_sandbox": "opening",
}
__version__ = "0.1.0"
__all__ = [
    "AnySandbox",
    "AnySession",
    "CellResult",
    "CellStatus",
    "Sandbox",
    "SandboxClient",
    "SandboxFailure",
    "Session",
    "Settings",
    "SettingsError",
    "describe_machine",
    "make_commands",
    "make_sandbox",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
