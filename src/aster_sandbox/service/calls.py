"""Call the functions of ``inside.py``, which run in a session, and fetch their results."""

from __future__ import annotations

import base64
import json
import re
import secrets
from typing import Any

from aster_sandbox.errors import SandboxFailure
from aster_sandbox.interface import AnySession
from aster_sandbox.output import NO_OUTPUT
from aster_sandbox.service.registry import Registry
from aster_sandbox.types import CellResult, CellStatus

MODULE = "aster_sandbox.service.inside"
SETUP = f"__import__({MODULE!r}, fromlist=['begin']).begin()\n"
NOTEBOOK_SETUP = SETUP.replace("begin()", "begin(notebook=True)")
"""The setups of sessions in which functions of ``inside.py`` are called."""
SHORTEST_OUTPUT = 200
"""Smallest setting of ``output_characters`` with which results can be fetched."""
_PIECE = re.compile(r"\[\[(\d+):([A-Za-z0-9+/=]*)\]\]")


async def call_inside(
    registry: Registry, session: AnySession, function: str, arguments: dict[str, Any]
) -> tuple[CellResult, dict[str, Any]]:
    """Run a function of ``inside.py`` as a cell. Returns the cell's result and the function's, which is empty if the
    interpreter ended first. Raises SandboxFailure if the user's code destroyed the result, or if the function itself failed."""
    ticket = secrets.token_hex(8)
    call = await session.run(f"__import__('sys').modules[{MODULE!r}].{function}({ticket!r}, **{arguments!r})")
    registry.metrics.cell(call)
    if call.status is CellStatus.ERROR:  # an error in inside.py itself
        raise SandboxFailure(call.output)
    if call.status is CellStatus.CRASHED:
        return call, {}
    text = await _take(session, ticket, registry.settings.output_characters - 64)
    try:
        outcome = json.loads(base64.b64decode(text, validate=True)) if text else {}
    except ValueError:
        outcome = None
    if not isinstance(outcome, dict) or (not outcome and call.status is CellStatus.OK):
        raise SandboxFailure("the code destroyed its own result")
    if "fault" in outcome:
        raise SandboxFailure(outcome["fault"])
    return call, outcome


def split_output(call: CellResult) -> tuple[str, str]:
    """Split a cell's output into what it printed and the sandbox's note on how it ended."""
    if call.status in (CellStatus.OK, CellStatus.ERROR):
        return "" if call.output == NO_OUTPUT else f"{call.output}\n", ""
    before, _, note = call.output.rpartition("\n[")
    return (f"{before}\n", f"[{note}") if before else ("", note)


def longest_seconds(registry: Registry, wanted: float) -> float:
    """The time limit for code: ``wanted``, but a little less than ``cell_seconds``, so that the session does not interrupt it
    first."""
    limit = registry.settings.cell_seconds
    return min(wanted, limit - min(0.5, limit / 10))


async def _take(session: AnySession, ticket: str, size: int) -> str:
    """Fetch the result that a session keeps for ``ticket``, in pieces of ``size`` characters. Empty if there is none."""
    text = ""
    while True:
        call = await session.run(f"__import__('sys').modules[{MODULE!r}].take({ticket!r}, {len(text)}, {size})")
        piece = _PIECE.search(call.output)
        if call.status is not CellStatus.OK or piece is None:
            raise SandboxFailure(f"the code destroyed its own result: {call.output[:200]}")
        text += piece[2]
        if len(text) >= int(piece[1]) or not piece[2]:
            return text
