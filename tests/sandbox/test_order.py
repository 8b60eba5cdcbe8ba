"""Disturbances between two requests: cancellation, broken setups, imported code, FIFOs, scarce descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import pytest

from aster_sandbox import Sandbox, SandboxFailure
from tests.sandbox.sandbox_bench import Bench


def test_sessions_of_a_zygote_with_many_descriptors_have_their_own_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent / "preloaded")

    async def main() -> set[str]:
        async with Sandbox(preload=["many_descriptors"], sessions=40) as sandbox:
            sessions = await asyncio.gather(*(sandbox.open(number) for number in range(40)))
            look = "import os, stat\n[stat.S_ISCHR(os.fstat(n).st_mode) for n in (0, 502)], stat.S_ISFIFO(os.fstat(1).st_mode)"
            return {(await session.run(look)).output for session in sessions}

    assert asyncio.run(main()) == {"([True, True], True)"}


def test_setup_that_fails_in_recovery_is_a_failure(bench: Bench) -> None:
    session = bench.open(setup=f"import time\nassert time.time() < {time.time() + 0.5}")
    bench.do(session.run("import os\nx = 1"))
    bench.do(asyncio.sleep(0.6))
    for code in ("os._exit(3)", "x"):
        with pytest.raises(SandboxFailure, match="AssertionError"):
            bench.do(session.run(code))


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.004, 0.02])
def test_cancelled_upload_does_not_affect_the_next_cell(bench: Bench, seconds: float) -> None:
    async def main() -> list[str]:
        async with await bench.sandbox.open(1) as session:
            await session.run("y = 4")
            uploading = asyncio.create_task(session.upload("large", bytes(30 << 20)))
            await asyncio.sleep(seconds)
            uploading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await uploading
            return [(await session.run("y + 1")).output for _ in range(2)]

    assert bench.do(main()) == ["5", "5"]


def test_cell_that_falsely_reports_an_interrupt_is_killed(hasty: Bench) -> None:
    claim = """
import os, sys, time
worker = sys._getframe()
while getattr(worker.f_locals.get("self"), "reporting", None) is None:
    worker = worker.f_back
worker = worker.f_locals["self"]
for _ in range(60):
    worker.reporting()
    time.sleep(0.2)
"""
    _, claimed, after = hasty.cells("x = 1", claim, "x")
    assert claimed.status == "crashed"
    assert "own connection" in claimed.output
    assert after.output == "1"


def test_imported_code_that_breaks_builtins_and_limits_affects_one_cell(bench: Bench) -> None:
    session = bench.open()
    module = b"import builtins, resource\nbuiltins.len = lambda _: -1\nresource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))\n"
    bench.do(session.upload("spoil.py", module))
    bench.do(session.run("import spoil"))
    look = "import resource\nlen('abc'), resource.getrlimit(resource.RLIMIT_NOFILE)[0]"
    assert bench.do(session.run(look)).output == "(3, 512)"


def test_upload_to_a_fifo_is_an_immediate_error(bench: Bench) -> None:
    session = bench.open()
    bench.do(session.run("import os\nx = 1\nos.mkfifo('pipe')"))
    with pytest.raises(OSError, match="pipe"):
        bench.do(session.upload("pipe", b"1"))
    assert bench.do(session.run("x")).output == "1"


def test_upload_beyond_file_mb_is_refused(hasty: Bench) -> None:
    session = hasty.open()
    with pytest.raises(OSError, match="file_mb"):
        hasty.do(session.upload("large", bytes(257 << 20)))
    assert hasty.do(session.run("1 + 1")).output == "2"


def test_cell_that_mentions_plotting_survives_without_free_descriptors(bench: Bench) -> None:
    fill = "import os\nheld = []\ntry:\n    while True: held.append(os.open('/dev/null', 0))\nexcept OSError: pass"
    *_, drawn = bench.cells(fill, "1  # plot")
    assert (drawn.status, drawn.output) == ("ok", "1")
