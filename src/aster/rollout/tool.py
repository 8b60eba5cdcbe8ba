"""The Python tool of one attempt: what a call becomes, whoever asked for it."""

from __future__ import annotations

from aster.chat import ParsedCall
from aster.types import CallStatus, ToolCall
from aster_sandbox import AnySandbox, AnySession


class PythonTool:
    """Runs an attempt's calls in one session, which is opened at the first call whose code runs."""

    def __init__(self, sandbox: AnySandbox, seed: int, setup: str) -> None:
        self._sandbox, self._seed, self._setup = sandbox, seed, setup
        self._session: AnySession | None = None

    async def run(self, call: ParsedCall) -> ToolCall:
        """The call with its output; one that could not be parsed gets its error as output. May raise SandboxFailure."""
        if call.error:
            return not_run(call, call.error)
        if self._session is None:
            self._session = await self._sandbox.open(self._seed, self._setup)
        return ToolCall.of_cell(await self._session.run(call.code))

    async def close(self) -> None:
        """End the session, if there is one."""
        if self._session is not None:
            await self._session.close()


def not_run(call: ParsedCall, why: str) -> ToolCall:
    """A call that no code ran for, with the reason as what the policy sees."""
    return ToolCall(call.code, CallStatus.MALFORMED, f"Error: {why}", 0.0)
