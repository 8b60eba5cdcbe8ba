"""Who takes part in ``sandbox.py``: ASTER's sandbox, Jupyter kernels, ``python -c`` with replay, and bare fork as the floor."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from aster_sandbox import AnySandbox, AnySession, CellStatus

try:
    import ipykernel  # noqa: F401 - a kernel without it would fail only after a minute
    from jupyter_client.manager import start_new_async_kernel
except ImportError as error:
    raise SystemExit(f"benchmarks/sandbox.py needs Jupyter ({error}); give `make bench`, or pip install '.[bench]'") from error

FLOOR = Path(__file__).with_name("_sandbox_floor.py")
CRASH = "import os\nos._exit(3)"
SECONDS = 60.0
"""The longest a kernel may take for anything."""
POLL_SECONDS = 0.002
"""Between two looks at whether a kernel died. Jupyter's own restarter looks every 3 s."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""What the sandbox sets for its sessions, for the others too."""


class Session(Protocol):
    """One interpreter with state, or what behaves like one."""

    async def run(self, code: str) -> str:
        """A cell's output. A cell that fails raises."""

    async def keep(self, code: str) -> str:
        """The same, and the cell counts as one of the earlier cells that a peer runs again."""

    async def crash(self) -> None:
        """Run a cell that ends the interpreter. Returns when the session could take the next cell with its earlier state."""

    async def close(self) -> None:
        """End it."""


class Contestant(Protocol):
    """Where sessions come from."""

    async def open(self) -> Session:
        """A session that is ready."""


class AsterSession:
    """A session of the sandbox. It keeps its own record of earlier cells."""

    def __init__(self, session: AnySession) -> None:
        self._session = session

    async def run(self, code: str) -> str:
        """A cell's output."""
        call = await self._session.run(code)
        if call.status is not CellStatus.OK:
            raise RuntimeError(f"aster: {call.status}: {call.output}")
        return call.output

    keep = run

    async def crash(self) -> None:
        """The sandbox answers when it has the state again."""
        call = await self._session.run(CRASH)
        if call.status is not CellStatus.CRASHED:
            raise RuntimeError(f"aster: a cell that ends its interpreter was answered with {call.status}")

    async def close(self) -> None:
        """End it."""
        await self._session.close()


class Aster:
    """ASTER's sandbox, as a recipe that names nothing gets it."""

    def __init__(self, sandbox: AnySandbox) -> None:
        self._sandbox = sandbox

    async def open(self) -> AsterSession:
        """A session that is ready."""
        return AsterSession(await self._sandbox.open(seed=0))


class JupyterSession:
    """One kernel with its client."""

    def __init__(self, manager: Any, client: Any) -> None:
        self._manager = manager
        self._client = client
        self._earlier: list[str] = []

    async def run(self, code: str) -> str:
        """A cell's output: what it printed and the value of its last expression."""
        request = self._client.execute(code)
        texts: list[str] = []
        while True:
            message = await self._client.get_iopub_msg(timeout=SECONDS)
            if message["parent_header"].get("msg_id") != request:
                continue
            content = message["content"]
            match message["msg_type"]:
                case "stream" if content["name"] == "stdout":  # after 1,000 cells IPython warns on stderr that it forgets
                    texts.append(content["text"])
                case "execute_result":
                    texts.append(content["data"]["text/plain"])
                case "error":
                    raise RuntimeError(f"jupyter: {content['ename']}: {content['evalue']}")
                case "status" if content["execution_state"] == "idle":
                    break
        # The kernel may still answer a question that the client asked twice while it started.
        while (await self._client.get_shell_msg(timeout=SECONDS))["parent_header"].get("msg_id") != request:
            pass
        return "".join(texts)

    async def keep(self, code: str) -> str:
        """The same, and remember the cell."""
        output = await self.run(code)
        self._earlier.append(code)
        return output

    async def crash(self) -> None:
        """Restart the kernel as soon as it is dead, and run the earlier cells again."""
        self._client.execute(CRASH)
        while await self._manager.is_alive():
            await asyncio.sleep(POLL_SECONDS)
        await self._manager.restart_kernel(now=True)
        await self._client.wait_for_ready(timeout=SECONDS)
        for code in self._earlier:
            await self.run(code)

    async def close(self) -> None:
        """Kill the kernel, the quickest way the client offers."""
        self._client.stop_channels()
        await self._manager.shutdown_kernel(now=True)


class Jupyter:
    """ipykernel through jupyter_client, one kernel a session."""

    def __init__(self, folder: str) -> None:
        # Kernels keep a history: not the one of the person who runs this.
        self._environment = os.environ | ONE_THREAD | {"IPYTHONDIR": folder}
        self._folder = folder

    async def open(self) -> JupyterSession:
        """A kernel that has said it is ready."""
        manager, client = await start_new_async_kernel(
            startup_timeout=SECONDS,
            kernel_name="python3",
            env=self._environment,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return JupyterSession(manager, client)


class ReplaySession:
    """No process of its own: every cell runs the earlier ones again in a fresh one."""

    def __init__(self) -> None:
        self._earlier: list[str] = []

    async def run(self, code: str) -> str:
        """A cell's output; that of the earlier ones is thrown away."""
        status, output = await self._run(code)
        if status != 0:
            raise RuntimeError(f"python -c ended with {status}: {output}")
        return output

    async def keep(self, code: str) -> str:
        """The same, and remember the cell."""
        output = await self.run(code)
        self._earlier.append(code)
        return output

    async def crash(self) -> None:
        """There is nothing to bring back."""
        status, _ = await self._run(CRASH)
        if status != 3:
            raise RuntimeError(f"python -c: a cell that ends its interpreter ended with {status}")

    async def close(self) -> None:
        """Nothing to end."""

    async def _run(self, code: str) -> tuple[int | None, str]:
        earlier = []
        if self._earlier:
            earlier = ["import os, sys\nsys.stdout = open(os.devnull, 'w')", *self._earlier, "sys.stdout = sys.__stdout__"]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "\n".join([*earlier, _printing_its_value(code)]),
            env=os.environ | ONE_THREAD,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return process.returncode, output.decode().rstrip("\n")


class Replay:
    """``python -c``: stateless."""

    async def open(self) -> ReplaySession:
        """Nothing is started."""
        return ReplaySession()


class Floor:
    """A process with the zygote's libraries that forks, and does nothing else."""

    def __init__(self, preload: list[str]) -> None:
        path = os.pathsep.join(entry for entry in sys.path if os.path.isabs(entry))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-X", "no_debug_ranges", str(FLOOR), *preload],
            env=os.environ | ONE_THREAD | {"PYTHONPATH": path, "PYTHONHASHSEED": "0", "MPLBACKEND": "Agg"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.communicate()  # the end of its input ends it

    def fork(self, count: int) -> dict[str, list[float]]:
        """Seconds of ``count`` forks until the child's answer and until its end, and of round trips alone."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        times: dict[str, list[float]] = self._read()
        return times

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{FLOOR.name} ended with status {self._process.wait()}")
        return json.loads(line)


def _printing_its_value(code: str) -> str:
    """A cell as a script: with its last expression printed, as a prompt does."""
    module = ast.parse(code)
    if module.body and isinstance(last := module.body[-1], ast.Expr):
        module.body[-1] = ast.parse(f"print(repr({ast.unparse(last.value)}))").body[0]
    return ast.unparse(module)
