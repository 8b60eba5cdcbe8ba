"""A package for ``sandbox.preload``: sessions give back before every request, however little they have copied."""

from __future__ import annotations

from aster_sandbox import giving

given: list[int] = []
"""What each time came to, in bytes that were equal."""


def _always(_giver: giving.Giver) -> None:
    given.append(giving.give_back())


giving.Giver.wait = _always  # type: ignore[assignment, method-assign]
giving.WORTH = 0
