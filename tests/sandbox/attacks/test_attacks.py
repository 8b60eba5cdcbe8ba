"""Run every attack beside a victim session, at every isolation level that works here.

An attack that the level covers must fail. Whatever it does, the victim can run cells meanwhile and keeps its state and secrets,
the host's files do not change, no process is left, and the attacker's session continues with its earlier state.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import aster_sandbox.session
from aster_sandbox import CellResult, Sandbox, Session, Settings
from aster_sandbox.isolation import Level, probe
from tests.sandbox.attacks.attack import HEADER, Attack
from tests.sandbox.attacks.interpreter import INTERPRETER
from tests.sandbox.attacks.others import OTHERS
from tests.sandbox.attacks.processes import PROCESSES
from tests.sandbox.attacks.reach import REACH
from tests.sandbox.attacks.resources import RESOURCES
from tests.sandbox.conftest import levels_here
from tests.sandbox.sandbox_bench import Bench
from tests.sandbox.test_lifecycle import runners_of, soon

ATTACKS = [*PROCESSES, *OTHERS, *REACH, *RESOURCES, *INTERPRETER]


@dataclass
class Scene:
    """A sandbox at one level, a victim session in it, and the host's files that are attacked."""

    bench: Bench
    victim: Session
    setup: str
    secret: str
    files: dict[Path, tuple[object, ...]]
    own_ids: bool
    """Whether sessions run as other users than the one who runs the tests."""

    def untouched(self) -> bool:
        """Whether the host's files are unchanged."""
        return all(seen(path) == before for path, before in self.files.items())

    def comes_to_rest(self) -> bool:
        """Whether the victim's process is the only one left.

        Runs the sandbox's loop a little first, so that it learns which processes have ended.
        """
        self.bench.do(asyncio.sleep(0.01))
        return len(self.running()) == len(self.bench.sandbox._runners) == 1

    def running(self) -> list[int]:
        """All processes of sessions."""
        return runners_of(self.bench.sandbox)


def seen(path: Path) -> tuple[object, ...]:
    about = path.stat()
    return path.read_bytes() if about.st_size < 1000 else b"", about.st_mode, about.st_mtime_ns, about.st_size


@pytest.fixture(scope="module", params=levels_here())
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    secret = secrets.token_hex(12)
    folder = tmp_path_factory.mktemp("host")
    home_file = Path.home() / f".aster-test-{secrets.token_hex(4)}"
    secret_file = folder / "secret"
    for path in (secret_file, home_file):
        path.write_text(secret)
        path.chmod(0o600)
    socket_file = folder / "socket"
    listeners = [socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX), socket.create_server(("127.0.0.1", 0))]
    listeners[0].bind(str(socket_file))
    listeners[1].bind(f"\0{socket_file}")
    listeners[0].listen()
    listeners[1].listen()
    setup = (
        f"SECRET_FILE, HOME_FILE, SOCKET_FILE = {str(secret_file)!r}, {str(home_file)!r}, {str(socket_file)!r}\n"
        f"PORT, SUPERVISOR = {listeners[2].getsockname()[1]}, {os.getpid()}"
    )
    settings = Settings(
        isolation=request.param,
        cell_seconds=0.5,
        memory_mb=256,
        output_characters=2000,
        sessions=8,
        preload=[],
        processes=32,
        disk_mb=16,
        file_mb=8,
    )
    loop = asyncio.new_event_loop()
    bench = Bench(loop, loop.run_until_complete(Sandbox(settings).__aenter__()))
    victim = bench.do(bench.sandbox.open(1))
    begun = bench.do(
        victim.run(f"secret, n = {secret!r}, 0\nopen('mine', 'w').write('victim ' + secret)\n__import__('os').getuid()")
    )
    code = [Path(os.__file__), Path(aster_sandbox.session.__file__)]
    host = {path: seen(path) for path in (secret_file, home_file, *code)}
    with pytest.MonkeyPatch.context() as patch:
        # Most attacks ignore the interrupt, so do not wait long.
        patch.setattr("aster_sandbox.runner.GRACE_SECONDS", 0.2)
        yield Scene(bench, victim, setup, secret, host, int(begun.output.split()[-1]) != os.getuid())
    loop.run_until_complete(bench.sandbox.__aexit__(None, None, None))
    loop.close()
    for listener in listeners:
        listener.close()
    home_file.unlink()


def test_attack_names_are_unique() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack(scene: Scene, attack: Attack) -> None:
    level = scene.bench.sandbox.level
    covered = list(Level).index(level) <= list(Level).index(attack.covered_from)
    shielded = level is Level.NAMESPACES or scene.own_ids or (level is Level.LANDLOCK and probe().landlock_abi >= 6)
    if attack.harms_the_user and not shielded:
        pytest.skip(f"not covered at this level, and {attack.harms_the_user}")
    if level not in (probe().best, Level.RLIMITS) and attack.covered_from is Level.RLIMITS and not attack.harms_the_user:
        pytest.skip("covered at every level, so run only at the strongest and the weakest")
    scene.bench.do(scene.victim.run("n = 0"))
    call, meanwhile, after = scene.bench.do(beside_the_victim(scene, attack))
    # A note, or late output of the attack's child processes, may come before it.
    assert after.output.splitlines()[-1] == "42" or attack.breaks_itself, after.output
    if covered:
        assert "BREACH" not in call.output, call.output
        assert scene.secret not in call.output
    if call.status == "timeout":
        assert meanwhile > 0, "the victim ran no cell during the attack"
    check = scene.bench.do(scene.victim.run("n, secret, open('mine').read()"))
    assert check.output == str((meanwhile, scene.secret, f"victim {scene.secret}"))
    assert scene.untouched()
    assert soon(scene.comes_to_rest), f"something is left running: {scene.running()}"


async def beside_the_victim(scene: Scene, attack: Attack) -> tuple[CellResult, int, CellResult]:
    """Run the attack in its own session. Returns its result, how many cells the victim ran meanwhile, and the result of the
    attacker's next cell."""
    async with await scene.bench.sandbox.open(2, scene.setup) as session:
        assert (await session.run(f"{HEADER}\nkept = 41")).status == "ok"
        running = asyncio.create_task(session.run(attack.code))
        count = 0
        while not running.done():
            call = await scene.victim.run("n += 1\nn")
            count += 1
            assert call.output == str(count), call.output
        return await running, count, await session.run("kept + 1")
