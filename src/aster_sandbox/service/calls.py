"""Calls of ``inside.py``, which runs in a session, and their results."""

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
"""Of the sessions in which it is called."""
SHORTEST_OUTPUT = 200
"""Characters that a cell's output must be able to hold, for results to be taken."""
_PIECE = re.compile(r"\[\[(\d+):([A-Za-z0-9+/=]*)\]\]")


async def call_inside(
    registry: Registry, session: AnySession, function: str, arguments: dict[str, Any]
) -> tuple[CellResult, dict[str, Any]]:
    """Run a function of ``inside.py`` as a cell. Returns what came of the cell, and the function's result; an empty one where
    the interpreter ended before it had one. SandboxFailure where the code destroyed it, or where the function itself failed."""
    ticket = secrets.token_hex(8)
    call = await session.run(f"__import__('sys').modules[{MODULE!r}].{function}({ticket!r}, **{arguments!r})")
    registry.metrics.cell(call)
    if call.status is CellStatus.ERROR:  # of inside.py's own
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
    """A cell's output: what it printed, and what the sandbox says of its end."""
    if call.status in (CellStatus.OK, CellStatus.ERROR):
        return "" if call.output == NO_OUTPUT else f"{call.output}\n", ""
    before, _, note = call.output.rpartition("\n[")
    return (f"{before}\n", f"[{note}") if before else ("", note)


def longest_seconds(registry: Registry, wanted: float) -> float:
    """What code may take: within the session's own limit, whose interrupt would come in between otherwise."""
    limit = registry.settings.cell_seconds
    return min(wanted, limit - min(0.5, limit / 10))


async def _take(session: AnySession, ticket: str, size: int) -> str:
    """The result that waits inside a session, piece by piece; nothing where it is another call's."""
    text = ""
    while True:
        call = await session.run(f"__import__('sys').modules[{MODULE!r}].take({ticket!r}, {len(text)}, {size})")
        piece = _PIECE.search(call.output)
        if call.status is not CellStatus.OK or piece is None:
            raise SandboxFailure(f"the code destroyed its own result: {call.output[:200]}")
        text += piece[2]
        if len(text) >= int(piece[1]) or not piece[2]:
            return text
