"""Make a sandbox from its settings."""

from __future__ import annotations

import os

from aster_sandbox.interface import TOKEN_VARIABLE, AnySandbox
from aster_sandbox.settings import Settings


def make_sandbox(settings: Settings, *, beside_sampler: bool = False) -> AnySandbox:
    """A sandbox for these settings: a client of services if they name ``addresses``, else one on this machine.

    ``beside_sampler``: whether this process also samples a policy, so that cells leave it ``spare_processors``."""
    if settings.addresses:
        from aster_sandbox.client import SandboxClient  # imports an HTTP library, which the zygote does not need

        return SandboxClient(settings.addresses, os.environ.get(TOKEN_VARIABLE), settings)
    from aster_sandbox.supervisor import Sandbox

    return Sandbox(settings, beside_sampler=beside_sampler)
