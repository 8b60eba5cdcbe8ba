"""Other tools' requests: SandboxFusion's ``/run_code``, and ``/run_stateful_code``, which was derived from it.

``/run_code`` runs a script in a new session, ``/run_stateful_code`` runs code in the session that it names. ``inside.py`` runs
both. If the interpreter ends, ``stderr`` contains the note that a cell's output would show. Clients of these requests repeat
only those that were answered with 504, so an overloaded service answers them with that status.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import signal
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from aster_sandbox.service.access import Account, Refused
from aster_sandbox.service.calls import SETUP, call_inside, longest_seconds, split_output
from aster_sandbox.service.files import BadRequest, Files
from aster_sandbox.service.registry import Registry
from aster_sandbox.service.schemas import (
    CommandRunResult,
    RunCodeRequest,
    RunCodeResponse,
    RunStatefulCodeRequest,
    RunStatefulCodeResponse,
)
from aster_sandbox.session import Session
from aster_sandbox.types import CellResult, CellStatus

Outcome = TypeVar("Outcome")
BUSY = frozenset({429, 503})
BUSY_STATUS = 504
IMPORTS = "import itertools, math, os, sympy\nimport sympy as sp\n"
"""What the original ``/run_stateful_code`` imports for every cell."""


async def run_code(registry: Registry, account: Account, request: RunCodeRequest) -> RunCodeResponse:
    """Run a script in a new session. Raises Refused."""

    async def work() -> RunCodeResponse:
        files, arguments, patience = _read(registry, request)
        arguments["withheld_mb"] = _withheld_mb(registry.settings.memory_mb, request.memory_limit_MB)
        async with registry.temporary_session(account, secrets.randbits(63), SETUP, patience) as do:
            return await do(lambda session: _run(registry, session, "run_script", arguments, files))

    return await in_fusion_form(work, _failed)


async def run_stateful_code(registry: Registry, account: Account, request: RunStatefulCodeRequest) -> RunStatefulCodeResponse:
    """Run code in the session that the request names, which is opened if it does not exist. Raises Refused."""
    session_id = request.session_id or secrets.token_hex(16)

    async def work() -> RunCodeResponse:
        files, arguments, patience = _read(registry, request)
        await registry.open(account, session_id, _seed(session_id), SETUP + IMPORTS, wait_seconds=patience)
        content = json.dumps(request.model_dump(exclude={"request_id"}))
        result = await registry.once(
            account,
            session_id,
            request.request_id,
            content,
            lambda session: _run(registry, session, "run_cell", arguments, files),
        )
        assert isinstance(result, RunCodeResponse)
        return result

    answer = await in_fusion_form(work, _failed)
    return RunStatefulCodeResponse(**answer.model_dump(), session_id=session_id)


async def in_fusion_form(work: Callable[[], Awaitable[Outcome]], fault: Callable[[str], Outcome]) -> Outcome:
    """Do some work and turn its errors into SandboxFusion's: ``fault`` makes the reply for an error's text, and an overload is
    refused with 504."""
    try:
        return await work()
    except BadRequest as error:
        return fault(str(error))
    except Refused as error:
        if error.status in BUSY:
            raise Refused(BUSY_STATUS, str(error), error.retry_seconds) from None
        if error.status == 424:
            return fault(str(error))
        raise


def pod() -> str | None:
    """The name of the pod that this runs in, which SandboxFusion's replies contain; None outside Kubernetes."""
    return os.environ.get("MY_POD_NAME")


async def _run(registry: Registry, session: Session, function: str, arguments: dict[str, Any], files: Files) -> RunCodeResponse:
    await files.put(session)
    call, outcome = await call_inside(registry, session, function, arguments)
    found = await files.fetch(session) if outcome else {}
    return _response(call, outcome, found)


def _response(call: CellResult, outcome: dict[str, Any], files: dict[str, str]) -> RunCodeResponse:
    printed, note = split_output(call)
    late = call.status is CellStatus.TIMEOUT or bool(outcome.get("late"))
    code = outcome["return_code"] if "return_code" in outcome else _exit_status(call.output)
    result = CommandRunResult(
        status="TimeLimitExceeded" if late else "Finished",
        execution_time=round(float(outcome.get("seconds", call.seconds)), 6),
        return_code=None if late else code,
        stdout=str(outcome.get("stdout", printed)),
        stderr=f"{outcome.get('stderr', '')}{note}",
    )
    return RunCodeResponse(
        status="Success" if result.return_code == 0 else "Failed", run_result=result, executor_pod_name=pod(), files=files
    )


def _failed(message: str) -> RunCodeResponse:
    return RunCodeResponse(status="SandboxError", message=message, executor_pod_name=pod())


def _read(registry: Registry, request: RunCodeRequest) -> tuple[Files, dict[str, Any], float]:
    """A request's files, the arguments for ``inside.py``, and how many seconds it may wait for a session. Raises BadRequest."""
    if request.language != "python":
        raise BadRequest(f"language {request.language!r} is not available; this service runs only python")
    files = Files(request.files, request.fetch_files, registry.level)
    seconds = longest_seconds(registry, request.run_timeout)
    arguments = {"code": request.code, "stdin": request.stdin, "seconds": seconds}
    return files, arguments, request.run_timeout + request.compile_timeout


def _seed(session_id: str) -> int:
    """A session's seed, derived from its id."""
    return int.from_bytes(hashlib.blake2b(session_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") >> 1


def _withheld_mb(session_mb: int, wanted_mb: int) -> int:
    """How much of the session's memory a script may not use, because it asked for less."""
    return max(session_mb - wanted_mb, 0) if wanted_mb > 0 else 0


def _exit_status(note: str) -> int:
    """The return code of an interpreter that ended as the note says: its exit status, or minus a signal's number; else -1."""
    if found := re.search(r"exited with status (\d+)", note):
        return int(found[1])
    if found := re.search(r"was killed by (SIG[A-Z0-9]+)", note):
        return -signal.Signals[found[1]].value
    return -1
