"""The client: a local sandbox's interface over services, and sessions that survive the loss of a service."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from aster_sandbox import CellStatus, Sandbox, SandboxFailure, Settings, SettingsError, make_sandbox
from aster_sandbox.client import SandboxClient
from aster_sandbox.hosts import Host
from aster_sandbox.isolation import Level
from aster_sandbox.remote import RemoteSession
from tests.sandbox.conftest import ISOLATION, level_taken
from tests.sandbox.service.services import ALICE, Service, counter, eventually

SESSIONS = int(os.environ.get("ASTER_TEST_SESSIONS", "30"))
"""Number of sessions in the test with three services; a full run uses 300."""


@pytest.fixture
def starts() -> Iterator[Callable[..., Service]]:
    """A function that starts services, which are killed afterwards."""
    started: list[Service] = []

    def start(*arguments: str, **more: Any) -> Service:
        started.append(Service(*arguments, **more))
        return started[-1]

    yield start
    for service in started:
        service.kill()


def do(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 120))


def test_cells_and_forks_work_as_with_a_local_sandbox(service: Service) -> None:
    cells = ["x = ask(20)\nx", "print('a')\n1 / 0", "x += 1\nx", "", "def f(:", "import random\nrandom.random()"]
    setup = "def ask(x): return 2 * x + 1"

    async def outputs(sandbox: Any) -> list[tuple[CellStatus, str, str]]:
        async with sandbox, await sandbox.open(7, setup) as session:
            calls = [await session.run(code) for code in cells]
            assert all(call.seconds > 0 for call in calls)
            return [(call.status, call.code, call.output) for call in calls]

    async def main() -> None:
        settings = Settings(cell_seconds=5, memory_mb=256, output_characters=2000, preload=[], isolation=ISOLATION)
        assert await outputs(SandboxClient([service.url], ALICE, settings)) == await outputs(Sandbox(settings))
        async with SandboxClient([service.url], ALICE) as sandbox:
            trunk = await sandbox.open(1)
            await trunk.run("x = [1]")
            twig = await trunk.fork()
            await twig.run("x.append(2)")
            assert [(await session.run("x")).output for session in (trunk, twig)] == ["[1]", "[1, 2]"]

    do(main())


def test_closed_client_leaves_no_session(service: Service) -> None:
    async def main() -> None:
        async with SandboxClient([service.url], ALICE) as sandbox:
            session = await sandbox.open(0)
            await sandbox.open(1)
            await (await session.fork()).run("1")
            await session.close()
            await session.close()
            with pytest.raises(SandboxFailure):
                await session.run("1")

    do(main())
    with service.client(ALICE) as http:
        assert http.get("/v1/sessions").json() == {"sessions": []}


def test_cancelled_fork_leaves_no_session(service: Service) -> None:
    async def main() -> None:
        async with SandboxClient([service.url], ALICE) as sandbox:
            session = await sandbox.open(0)
            await session.run("_ = open('f', 'wb').write(bytes(8 << 20))")  # so that a fork takes a while
            for seconds in (0.005, 0.01, 0.02):
                forking = asyncio.create_task(session.fork())
                await asyncio.sleep(seconds)
                forking.cancel()
                await asyncio.gather(forking, return_exceptions=True)
            assert (await session.run("1 + 1")).output == "2"

    do(main())
    with service.client(ALICE) as http:
        assert http.get("/v1/sessions").json() == {"sessions": []}


def test_cancelled_fork_whose_request_arrives_late_leaves_no_session(service: Service) -> None:
    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", service.port)

        async def upward() -> None:
            while data := await reader.read(1 << 16):
                if b"/fork " in data:
                    await asyncio.sleep(0.5)
                up_writer.write(data)

        async def downward() -> None:
            while data := await up_reader.read(1 << 16):
                writer.write(data)

        await asyncio.gather(upward(), downward(), return_exceptions=True)

    async def main() -> None:
        server = await asyncio.start_server(relay, "127.0.0.1", 0)
        async with SandboxClient([f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"], ALICE) as sandbox:
            session = await sandbox.open(0)
            forking = asyncio.create_task(session.fork())
            await asyncio.sleep(0.2)
            forking.cancel()
            await asyncio.gather(forking, return_exceptions=True)
            await asyncio.sleep(0.6)  # the request arrives while the parent is open
        server.close()

    do(main())
    with service.client(ALICE) as http:
        assert http.get("/v1/sessions").json() == {"sessions": []}


def test_setup_that_raises_is_a_sandbox_failure(service: Service) -> None:
    async def main() -> None:
        async with SandboxClient([service.url], ALICE) as sandbox:
            with pytest.raises(SandboxFailure, match="ZeroDivisionError"):
                await sandbox.open(0, "1 / 0")

    do(main())


def test_closing_ends_a_running_cell_and_cancelling_rolls_it_back(service: Service) -> None:
    async def main() -> None:
        async with SandboxClient([service.url], ALICE) as sandbox:
            session = await sandbox.open(0)
            await session.run("x = 8")
            cell = asyncio.create_task(session.run("import time\nx = 9\nprint('noise')\ntime.sleep(60)"))
            await asyncio.sleep(0.2)
            cell.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cell
            assert (await session.run("x")).output == "8"
            cell = asyncio.create_task(session.run("import time\ntime.sleep(60)"))
            await asyncio.sleep(0.2)
            await session.close()
            with pytest.raises(SandboxFailure):
                await cell

    do(main())


def test_open_waits_while_the_service_is_full(tight: Service) -> None:
    async def one(sandbox: SandboxClient, number: int) -> str:
        async with await sandbox.open(number) as session:
            return (await session.run(f"{number}")).output

    async def main() -> None:
        async with SandboxClient([tight.url], ALICE) as sandbox:
            outputs = await asyncio.gather(*(one(sandbox, number) for number in range(6)))
            assert outputs == [str(number) for number in range(6)]

    do(main())


def test_wrong_token_and_different_settings_are_settings_errors(service: Service) -> None:
    async def enter(token: str, settings: Settings | None) -> None:
        async with SandboxClient([service.url], token, settings):
            raise AssertionError("it was entered")

    with pytest.raises(SettingsError, match=r"sandbox\.addresses: .*ASTER_SANDBOX_TOKEN"):
        do(enter("wrong-wrong-wrong-wrong", None))
    with pytest.raises(SettingsError, match=r"sandbox\.cell_seconds .*10\.0.*5\.0"):
        do(enter(ALICE, Settings(preload=[])))


def test_service_must_have_the_named_isolation_level(service: Service) -> None:
    async def enter(isolation: Any) -> str:
        settings = Settings(
            cell_seconds=5, memory_mb=256, output_characters=2000, preload=[], isolation=isolation, addresses=[service.url]
        )
        async with SandboxClient(settings.addresses, ALICE, settings) as sandbox, await sandbox.open(0) as session:
            return (await session.run("'in'")).output

    taken = level_taken()
    assert [asyncio.run(enter(isolation)) for isolation in ("auto", taken.value)] == ["'in'", "'in'"]
    other = next(level for level in Level if level is not taken)
    with pytest.raises(SettingsError, match=rf"sandbox\.isolation .*'{other}'.*'{taken}'"):
        asyncio.run(enter(other.value))


def test_make_sandbox_uses_addresses(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASTER_SANDBOX_TOKEN", ALICE)
    assert isinstance(make_sandbox(Settings()), Sandbox)

    async def main() -> None:
        settings = Settings(
            cell_seconds=5, memory_mb=256, output_characters=2000, preload=[], addresses=[service.url], sessions=1
        )
        async with make_sandbox(settings) as sandbox:
            session = await sandbox.open(0)
            assert isinstance(session, RemoteSession)
            assert (await session.run("1 + 1")).output == "2"

    do(main())


def test_unreachable_services_are_a_failure(starts: Callable[..., Service]) -> None:
    service = starts()

    async def main() -> None:
        async with SandboxClient([service.url], give_up_seconds=2) as sandbox:
            session = await sandbox.open(0)
            service.kill()
            with pytest.raises(SandboxFailure, match=f"{service.url}: ConnectError"):
                await session.run("1")
        with pytest.raises(SandboxFailure, match=f"{service.url}: ConnectError"):
            async with SandboxClient([service.url], give_up_seconds=1):
                raise AssertionError("it was entered")

    do(main())


def test_restarted_service_is_used_again_and_sessions_are_restored(starts: Callable[..., Service]) -> None:
    service = starts("sandbox.cell_seconds=2")

    async def main() -> None:
        async with SandboxClient([service.url]) as sandbox:
            session = await sandbox.open(5, "y = 3")
            outputs = [
                (await session.run(code)).output for code in ("import random\nx = [random.random()]", "x.append(y)\n1 / 0")
            ]
            await session.run("x.append('late')\nwhile True: pass")
            random = (await session.run("x[0]")).output
            await session.run("import os\nos._exit(1)")
            service.kill()
            again = starts("sandbox.cell_seconds=2", port=service.port)
            # The interrupted cell is left out and reported; the one that crashed was rolled back immediately.
            call = await session.run("x")
            assert call.output == (
                "[the interpreter had to be replaced before this cell; the variables and imports of earlier cells are kept, "
                f"except for what these cells changed: 3]\n[{random}, 3]"
            )
            assert (await session.run("len(x)")).output == "2"
            # Cells keep their numbers.
            assert "<cell 8>" in (await session.run("1 / 0")).output
            assert "ZeroDivisionError" in outputs[1]
            with again.client() as http:
                assert len(http.get("/v1/sessions").json()["sessions"]) == 1

    do(main())


def test_seed_of_a_fork_is_restored_on_another_service(starts: Callable[..., Service]) -> None:
    services = [starts(), starts()]
    draw = "import random\nseen = [*globals().get('seen', []), random.random()]\nseen"

    async def local(seed: int) -> str:
        async with Sandbox(Settings(preload=[], isolation=ISOLATION)) as sandbox, await sandbox.open(5) as trunk:
            await trunk.run(draw)
            async with await trunk.fork(seed) as twig:
                await twig.run(draw)
                return (await twig.run(draw)).output

    async def main() -> None:
        async with SandboxClient([service.url for service in services]) as sandbox:
            trunk = await sandbox.open(5)
            await trunk.run(draw)
            twigs = [await trunk.fork(seed) for seed in (1, 2)]
            for twig in twigs:
                await twig.run(draw)
            next(service for service in services if service.url == trunk.address).kill()
            assert [(await twig.run(draw)).output for twig in twigs] == [await local(1), await local(2)]

    do(main())


def test_files_and_environment_are_restored_on_another_service(starts: Callable[..., Service]) -> None:
    services = [starts(), starts()]

    async def main() -> None:
        async with SandboxClient([service.url for service in services]) as sandbox:
            session = await sandbox.open(0, "import os", {"GREETING": "hallo"})
            await session.upload("data/in ü.bin", bytes(range(256)))
            await session.run("text = open('data/in ü.bin', 'rb').read()\nopen('out', 'wb').write(text[::-1])")
            await session.upload("data/in ü.bin", b"new")
            next(service for service in services if service.url == session.address).kill()
            call = await session.run("len(text), open('data/in ü.bin').read(), os.environ['GREETING']")
            assert call.output == "(256, 'new', 'hallo')"
            assert await session.download("out") == bytes(range(256))[::-1]
            assert await session.download("data/in ü.bin") == b"new"

    do(main())


def test_file_errors_are_os_errors_as_in_a_local_session(tight: Service) -> None:
    async def errors(session: Any) -> list[type[Exception] | None]:
        found: list[type[Exception] | None] = []
        for path, content in (("", b""), ("a\0b", b""), ("d", b""), ("/etc/x", b""), ("f", None), ("/tmp", None), ("", None)):
            try:
                await (session.download(path) if content is None else session.upload(path, content))
                found.append(None)
            except OSError as error:
                found.append(type(error))
        return found

    async def main() -> None:
        async with SandboxClient([tight.url], ALICE) as sandbox, await sandbox.open() as session:
            await session.run("import os\nos.mkdir('d')")
            async with Sandbox(Settings(preload=[], isolation=ISOLATION)) as local, await local.open() as near:
                await near.run("import os\nos.mkdir('d')")
                assert await errors(session) == await errors(near) == [OSError] * 7
            with pytest.raises(OSError, match="1048576"):
                await session.upload("large", bytes((1 << 20) + 1))
            await session.run("open('large', 'wb').write(bytes((1 << 20) + 1))")
            with pytest.raises(OSError, match="1048576"):
                await session.download("large")
            with pytest.raises(OSError, match="UTF-8"):
                await session.upload("\udc80", b"")
            # The session still has its service and its state.
            assert (await session.run("sorted(os.listdir())")).output == "['d', 'large']"

    do(main())


def test_invalid_environment_is_a_settings_error(service: Service) -> None:
    async def main() -> None:
        async with SandboxClient([service.url], ALICE) as remote, Sandbox(Settings(preload=[], isolation=ISOLATION)) as local:
            environments: list[Any] = [{"A=B": ""}, {"": ""}, {"A": "\0"}, {"A": 1}, {"A": "\ud800"}]
            for sandbox in (remote, local):
                for environment in environments:
                    with pytest.raises(SettingsError, match="environment: "):
                        await sandbox.open(environment=environment)

    do(main())


def test_lost_state_is_reported(starts: Callable[..., Service]) -> None:
    services = [starts("sandbox.cell_seconds=5"), starts("sandbox.cell_seconds=0.3")]

    async def main() -> None:
        async with SandboxClient([services[0].url]) as sandbox:
            session = await sandbox.open(0)
            await session.run("import time\ntime.sleep(0.6)\nx = 1")
            services[0].kill()
            sandbox._hosts.append(Host(services[1].url, None))  # with a shorter cell_seconds
            call = await session.run("'x' in globals()")
            assert call.output == (
                "[the interpreter had to be replaced before this cell; "
                "the variables and imports of earlier cells are lost]\nFalse"
            )

    do(main())


def test_partly_lost_state_is_reported(starts: Callable[..., Service]) -> None:
    first, second = starts("sandbox.cell_seconds=5"), starts("sandbox.cell_seconds=5")

    async def main() -> None:
        async with SandboxClient([first.url, second.url]) as sandbox:
            session = await sandbox.open(0, "import os")
            made = (await session.run("os.stat('.').st_ctime_ns")).output  # each process has a new directory
            await session.run(f"x = 1\nif os.stat('.').st_ctime_ns != {made}: os._exit(5)")
            (first if session.address == first.url else second).kill()
            call = await session.run("'x' in globals()")
            assert call.output == (
                "[the interpreter had to be replaced before this cell; the variables and imports of earlier cells are kept, "
                "except for what these cells changed: 2]\nFalse"
            )
            assert (await session.run("os.stat('.').st_ctime_ns > 0")).output == "True"

    do(main())


def test_sessions_go_to_the_least_loaded_service(starts: Callable[..., Service]) -> None:
    services = [starts("sandbox.sessions=20"), starts("sandbox.sessions=10")]

    async def main() -> None:
        async with SandboxClient([service.url for service in services]) as sandbox:
            sessions = [await sandbox.open(number) for number in range(12)]
            places = [sum(session.address == service.url for session in sessions) for service in services]
            assert places == [8, 4]

    do(main())


def test_sessions_survive_the_loss_of_one_of_three_services(starts: Callable[..., Service]) -> None:
    """Every session counts its cells and continues; no cell is lost or run twice."""
    services = [starts("sandbox.cell_seconds=30") for _ in range(3)]
    cells = 12

    async def one(sandbox: SandboxClient, number: int, begun: asyncio.Barrier) -> tuple[list[str], str | None]:
        async with await sandbox.open(number, f"name, n, log = {number}, 0, []") as session:
            outputs = []
            for step in range(cells):
                if step == 4:
                    await begun.wait()  # all sessions are in use when the service is killed
                call = await session.run(f"import time\ntime.sleep(0.02)\nn += 1\nlog.append({step})\nname, n, len(log)")
                assert call.status is CellStatus.OK, call
                outputs.append(call.output)
            assert (await session.run("log")).output == str(list(range(cells)))
            return outputs, session.address

    async def main() -> None:
        async with SandboxClient([service.url for service in services]) as sandbox:
            begun = asyncio.Barrier(SESSIONS + 1)
            running = [asyncio.create_task(one(sandbox, number, begun)) for number in range(SESSIONS)]
            await begun.wait()
            await asyncio.sleep(0.05)
            services[1].kill()
            results = await asyncio.gather(*running)
        for number, (outputs, address) in enumerate(results):
            assert outputs == [f"({number}, {step}, {step})" for step in range(1, cells + 1)]
            assert address != services[1].url
        for service in (services[0], services[2]):
            with service.client() as http:
                assert eventually(lambda http=http: http.get("/v1/sessions").json() == {"sessions": []})
                assert counter(http, "aster_sandbox_cells_running") == 0

    asyncio.run(asyncio.wait_for(main(), 600))


def test_lost_reply_is_requested_again_and_the_cell_runs_once(service: Service) -> None:
    """A proxy drops connections after it forwarded the request: the cell has run, and the client requests its reply again."""
    drops = iter([True, False, True, True, False] * 20)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", service.port)

        async def upward() -> None:
            while data := await reader.read(1 << 16):
                up_writer.write(data)
            up_writer.close()

        async def downward() -> None:
            while data := await up_reader.read(1 << 16):
                if b'"output"' in data and next(drops):
                    writer.transport.abort()
                    return
                writer.write(data)
            writer.close()

        await asyncio.gather(upward(), downward(), return_exceptions=True)

    async def main() -> None:
        server = await asyncio.start_server(relay, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with SandboxClient([f"http://127.0.0.1:{port}"], ALICE) as sandbox:
            session = await sandbox.open(0, "n = 0")
            outputs = [(await session.run("n += 1\nn")).output for _ in range(8)]
            assert outputs == [str(number) for number in range(1, 9)]
        server.close()

    do(main())
