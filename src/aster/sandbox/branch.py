"""A second session with the state of the first, local or remote."""

from __future__ import annotations

from aster.sandbox.client import RemoteSession
from aster.sandbox.interface import AnySandbox, AnySession
from aster.sandbox.session import Session


async def branch(sandbox: AnySandbox, session: AnySession) -> AnySession:
    """A new session. A service forks its own; here the cells of the first run again. Raises SandboxFailure."""
    if isinstance(session, RemoteSession):
        return await session.fork()
    assert isinstance(session, Session)
    copy = await sandbox.open(session._seed, session._setup)
    try:
        for cell in list(session._history):
            await copy.run(cell.code if cell.status is not None else "")
    except BaseException:
        await copy.close()
        raise
    return copy
