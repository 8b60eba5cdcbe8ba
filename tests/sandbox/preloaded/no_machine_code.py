"""A package for ``sandbox.preload``: the machine has a processor for which there is no machine code."""

from __future__ import annotations

from aster_sandbox import machine_code

machine_code.MACHINE = "m68k"
