"""The two exceptions of this package."""

from __future__ import annotations


class SandboxFailure(Exception):
    """The sandbox itself failed: its parent process cannot be started, a setup raises, a session is used after its end. Never
    because of what a cell did."""


class SettingsError(ValueError):
    """A setting, a path or an address that the user gave cannot be used. The message is one line that names it and says what to
    do."""
