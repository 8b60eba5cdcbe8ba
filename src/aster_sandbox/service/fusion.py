"""The two request forms in use elsewhere: SandboxFusion's ``/run_code`` and ``/run_stateful_code``.

A script of ``/run_code`` has a fresh session; the code of ``/run_stateful_code`` has the session it names. ``inside.py`` runs
them. Where the session itself goes down, the message that a cell would show is in ``stderr``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
import signal
from pathlib import Path
from typing import Any

from aster_sandbox.errors import SandboxFailure
from aster_sandbox.interface import AnySession
from aster_sandbox.output import NO_OUTPUT
from aster_sandbox.service.access import Account, Refused
from aster_sandbox.service.registry import Registry
from aster_sandbox.service.schemas import (
    CommandRunResult,
    RunCodeRequest,
    RunCodeResponse,
    RunStatefulCodeRequest,
    RunStatefulCodeResponse,
)
from aster_sandbox.types import CellResult, CellStatus

MODULE = "_aster_inside"
SHORTEST_OUTPUT = 200
"""Characters that a cell's output must be able to hold, for results to be taken."""
_SOURCE = (Path(__file__).parent / "inside.py").read_text(encoding="utf-8")
SETUP = f"""
import sys, types
sys.modules[{MODULE!r}] = types.ModuleType({MODULE!r})
exec(compile({_SOURCE!r}, "<sandbox>", "exec"), sys.modules[{MODULE!r}].__dict__)
del sys, types
"""
IMPORTS = "import itertools, math, os, sympy\nimport sympy as sp\n"
"""What the original of ``/run_stateful_code`` imports for every cell."""
_PIECE = re.compile(r"\[\[(\d+):([A-Za-z0-9+/=]*)\]\]")


async def run_code(registry: Registry, account: Account, request: RunCodeRequest) -> RunCodeResponse:
    """Run a script in a session of its own."""
    if request.language != "python":
        return _no_language(request)
    arguments = {
        "code": request.code,
        "stdin": request.stdin,
        "seconds": _seconds(registry, request),
        "withheld_mb": _withheld_mb(registry.settings.memory_mb, request.memory_limit_MB),
        "files": request.files,
        "fetch": request.fetch_files,
    }
    characters = registry.settings.output_characters
    patience = request.run_timeout + request.compile_timeout
    try:
        async with registry.visit(account, secrets.randbits(63), SETUP, patience) as use:

            async def work(session: AnySession) -> tuple[CellResult, dict[str, Any]]:
                call = await session.run(_call("run_script", arguments))
                registry.metrics.cell(call)
                return call, await _take(session, characters) if call.status in (CellStatus.OK, CellStatus.TIMEOUT) else {}

            call, outcome = await use(work)
    except Refused as error:
        if error.status == 424:
            return RunCodeResponse(status="SandboxError", message=str(error), executor_pod_name=_pod())
        raise
    return _response(call, outcome)


async def run_stateful_code(registry: Registry, account: Account, request: RunStatefulCodeRequest) -> RunStatefulCodeResponse:
    """Run code in the session it names, which is made where it is not there."""
    session_id = request.session_id or secrets.token_hex(16)
    if request.language != "python":
        return RunStatefulCodeResponse(**_no_language(request).model_dump(), session_id=session_id)
    arguments = {
        "code": request.code,
        "stdin": request.stdin,
        "seconds": _seconds(registry, request),
        "files": request.files,
        "fetch": request.fetch_files,
    }
    characters = registry.settings.output_characters

    async def work(session: AnySession) -> tuple[CellResult, dict[str, Any]]:
        call = await session.run(_call("run_cell", arguments))
        registry.metrics.cell(call)
        return call, await _take(session, characters) if call.status is CellStatus.OK else {}

    patience = request.run_timeout + request.compile_timeout
    content = json.dumps(arguments)
    try:
        await registry.open(account, session_id, _seed(session_id), SETUP + IMPORTS, patience)
        call, outcome = await registry.once(account, session_id, request.request_id, content, work)
    except Refused as error:
        if error.status == 424:
            return RunStatefulCodeResponse(
                status="SandboxError", message=str(error), executor_pod_name=_pod(), session_id=session_id
            )
        raise
    if "stdout" not in outcome:
        outcome = {**outcome, "stdout": "" if call.output == NO_OUTPUT else f"{call.output}\n"}
    return RunStatefulCodeResponse(**_response(call, outcome).model_dump(), session_id=session_id)


def _seed(session_id: str) -> int:
    """The same for the same id, on every machine."""
    return int.from_bytes(hashlib.blake2b(session_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") >> 1


def _seconds(registry: Registry, request: RunCodeRequest) -> float:
    """Within the session's own limit, whose interrupt would come in between otherwise."""
    limit = registry.settings.cell_seconds
    return min(request.run_timeout, limit - min(0.5, limit / 10))


def _withheld_mb(session_mb: int, wanted_mb: int) -> int:
    """What a script that wants less memory than its session has must leave alone."""
    return max(session_mb - wanted_mb, 0) if wanted_mb > 0 else 0


def _call(function: str, arguments: dict[str, Any]) -> str:
    return f"__import__('sys').modules[{MODULE!r}].{function}(**{arguments!r})"


async def _take(session: AnySession, characters: int) -> dict[str, Any]:
    """The result that waits inside a session, piece by piece. SandboxFailure where the code destroyed it."""
    size = characters - 64
    text = ""
    while True:
        call = await session.run(_call("take", {"start": len(text), "size": size}))
        piece = _PIECE.search(call.output)
        if call.status is not CellStatus.OK or piece is None:
            raise SandboxFailure(f"the result was lost: {call.output[:200]}")
        text += piece[2]
        if len(text) >= int(piece[1]) or not piece[2]:
            break
    try:
        outcome = json.loads(base64.b64decode(text, validate=True))
        assert isinstance(outcome, dict)
    except (ValueError, AssertionError):
        raise SandboxFailure("the result was overwritten by the code") from None
    return outcome


def _response(call: CellResult, outcome: dict[str, Any]) -> RunCodeResponse:
    if "fault" in outcome:
        return RunCodeResponse(status="SandboxError", message=str(outcome["fault"]), executor_pod_name=_pod())
    late = call.status is CellStatus.TIMEOUT or bool(outcome.get("late"))
    if call.status is CellStatus.ERROR:
        return RunCodeResponse(status="SandboxError", message=call.output, executor_pod_name=_pod())
    if "return_code" in outcome:
        stdout, stderr, code = str(outcome["stdout"]), str(outcome["stderr"]), outcome["return_code"]
    else:  # the session's interpreter went down, or was interrupted by its own limit: the note is the output's last line
        before, _, note = call.output.rpartition("\n[")
        stdout, stderr, code = before and f"{before}\n", note if not before else f"[{note}", _exit_status(call.output)
    result = CommandRunResult(
        status="TimeLimitExceeded" if late else "Finished",
        execution_time=round(float(outcome.get("seconds", call.seconds)), 6),
        return_code=None if late else code,
        stdout=stdout,
        stderr=stderr,
    )
    return RunCodeResponse(
        status="Success" if result.return_code == 0 else "Failed",
        run_result=result,
        executor_pod_name=_pod(),
        files=outcome.get("files", {}),
    )


def _exit_status(note: str) -> int:
    """What a shell would report of an interpreter that ended so; -1 where the note does not say."""
    if found := re.search(r"exited with status (\d+)", note):
        return int(found[1])
    if found := re.search(r"was killed by (SIG[A-Z0-9]+)", note):
        return -signal.Signals[found[1]].value
    return -1


def _no_language(request: RunCodeRequest) -> RunCodeResponse:
    message = f"language {request.language!r} is not available: this service runs python"
    return RunCodeResponse(status="SandboxError", message=message, executor_pod_name=_pod())


def _pod() -> str | None:
    return os.environ.get("MY_POD_NAME")
