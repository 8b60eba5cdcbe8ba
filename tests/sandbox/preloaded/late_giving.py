"""A package for ``sandbox.preload``: sessions give back only after three seconds, so that there is time to look before."""

from __future__ import annotations

from aster_sandbox import giving

giving.IDLE_SECONDS = 3.0
