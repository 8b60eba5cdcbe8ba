"""SandboxFusion's ``/run_jupyter``: run cells in order in one session, as a notebook does."""

from __future__ import annotations

import secrets
import time
from typing import Any

from aster_sandbox.service.access import Account
from aster_sandbox.service.calls import NOTEBOOK_SETUP, call_inside, longest_seconds, split_output
from aster_sandbox.service.files import Files
from aster_sandbox.service.fusion import in_fusion_form, pod
from aster_sandbox.service.registry import Registry
from aster_sandbox.service.schemas import CellRunResult, CommandRunResult, RunJupyterRequest, RunJupyterResponse
from aster_sandbox.session import Session
from aster_sandbox.types import CellStatus

ANSWER_CHARACTERS = 16 << 20
"""Maximum length of everything that the cells show and write to stderr, together."""


async def run_jupyter(registry: Registry, account: Account, request: RunJupyterRequest) -> RunJupyterResponse:
    """Run a notebook's cells in a new session. The next cell runs even if one fails. Raises Refused."""

    async def work() -> RunJupyterResponse:
        files = Files(request.files, request.fetch_files, registry.level)
        async with registry.temporary_session(account, secrets.randbits(63), NOTEBOOK_SETUP, request.total_timeout) as do:
            answer = await do(lambda session: _run_cells(registry, session, request, files))
        assert isinstance(answer, RunJupyterResponse)
        return answer

    return await in_fusion_form(
        work, lambda fault: RunJupyterResponse(status="SandboxError", message=fault, executor_pod_name=pod())
    )


async def _run_cells(registry: Registry, session: Session, request: RunJupyterRequest, files: Files) -> RunJupyterResponse:
    await files.put(session)
    began = time.monotonic()
    cells: list[CellRunResult] = []
    room = ANSWER_CHARACTERS
    late = False
    for number, code in enumerate(request.cells, 1):
        left = request.total_timeout - (time.monotonic() - began)
        late = left <= 0
        if late:
            break
        seconds = longest_seconds(registry, min(left, request.cell_timeout or left))
        arguments = {"number": number, "code": code, "seconds": seconds, "room": room}
        cell, timed_out = await _run_cell(registry, session, arguments)
        cells.append(cell)
        room = max(room - len(cell.model_dump_json()), 0)
        late = timed_out and time.monotonic() - began >= request.total_timeout
    took = time.monotonic() - began
    driver = CommandRunResult(
        status="TimeLimitExceeded" if late else "Finished",
        execution_time=round(took, 6),
        return_code=None if late else 0,
        stdout="",
        stderr="",
    )
    return RunJupyterResponse(
        status="Failed" if late else "Success",
        driver=driver,
        cells=cells,
        executor_pod_name=pod(),
        files=await files.fetch(session),
    )


async def _run_cell(registry: Registry, session: Session, arguments: dict[str, Any]) -> tuple[CellRunResult, bool]:
    """Run one cell. Returns its result and whether it reached its time limit."""
    call, outcome = await call_inside(registry, session, "run_notebook_cell", arguments)
    printed, note = split_output(call)
    error = list(outcome.get("error", []))
    late = call.status is CellStatus.TIMEOUT or bool(outcome.get("late"))
    if note and not error:
        name = "CellTimeout" if late else "DeadKernelError"
        error.append({"ename": name, "evalue": note.strip("[]"), "traceback": [note]})
    cell = CellRunResult(stdout=printed, stderr=str(outcome.get("stderr", "")), display=outcome.get("display", []), error=error)
    return cell, late
