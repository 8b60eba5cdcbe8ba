"""The exceptions of this package."""

from __future__ import annotations


class SandboxFailure(Exception):
    """The sandbox failed: its parent process does not start, a session's setup raises, or a closed session is used.

    Never raised because of what a cell does."""


class SettingsError(ValueError):
    """A setting, path or address from the user is not usable. The message is one line: which one, why, and what to do."""
