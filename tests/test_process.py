"""Processes that end with the one that started them, however it ends and whichever thread of it started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from aster.process import CANNOT_RUN, end_group, start, start_group
from tests.processes import running, wait_until

PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
PID = "import os; print(os.getpid(), flush=True); "
SLEEP = [sys.executable, "-c", f"{PID}import time; time.sleep(600)"]
BUSY = [sys.executable, "-c", f"{PID}9**9**9"]
"""In the middle of one arithmetic operation no Python handler runs."""
DEAF = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child:
    print(os.getpid(), child, flush=True)
time.sleep(600)
"""
"""Heeds no SIGTERM, and has a child."""


def parent_of(script: str) -> subprocess.Popen[str]:
    """A process that starts others as the script says."""
    code = f"import sys\nfrom aster.process import start, start_group\n{script}"
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("command", [SLEEP, BUSY])
@pytest.mark.parametrize("end", ["killed", "by itself"])
def test_a_command_is_killed_with_the_process_that_started_it(command: list[str], end: str) -> None:
    with parent_of(f"start({command!r}); sys.stdin.read()") as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert running(pid)
        if end == "killed":
            parent.kill()
    wait_until(lambda: not running(pid))


def test_a_command_outlives_the_thread_that_started_it() -> None:
    found: list[subprocess.Popen[bytes]] = []

    def begin() -> None:
        process = start(["sh", "-c", "echo up; read line; echo $line"], **PIPES)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        found.append(process)

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    assert found[0].communicate(b"down\n")[0] == b"down\n"


@pytest.mark.parametrize(
    ("code", "exit_code", "in_a_group"),
    [
        ("import sys; sys.exit(3)", 3, 3),
        ("import os; os.kill(os.getpid(), 9)", -9, 128 + 9),
    ],
)
def test_a_command_ends_with_its_own_exit_code(code: str, exit_code: int, in_a_group: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", code]
    assert start(command).wait() == exit_code
    assert start_group(command, seconds=1.0, folder=tmp_path).wait() == in_a_group


def test_a_command_that_cannot_be_run_says_why(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    for process in (start([missing], **PIPES), start_group([missing], seconds=1.0, folder=tmp_path, **PIPES)):
        assert process.communicate()[1].decode() == f"{missing}: cannot be run: No such file or directory\n"
        assert process.returncode == CANNOT_RUN


def test_a_command_has_the_usual_signals() -> None:
    """One that writes to a closed pipe ends quietly, as in a shell; and Ctrl-C of this process's terminal does not reach it."""
    process = start(["sh", "-c", "while echo line; do :; done"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert os.getpgid(process.pid) == process.pid
    process.stdout.close()
    assert process.wait() == -signal.SIGPIPE


def test_a_forked_process_starts_commands_of_its_own() -> None:
    start(["true"]).wait()
    child = os.fork()
    if child == 0:
        os._exit(start([sys.executable, "-c", "import sys; sys.exit(5)"]).wait())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5


def test_a_group_is_ended_and_its_folder_deleted_with_the_process_that_started_it(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    command = [sys.executable, "-c", DEAF]
    script = f"start_group({command!r}, seconds=0.2, folder={str(folder)!r}); sys.stdin.read()"
    with parent_of(script) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        parent.kill()
    assert len(pids) == 2
    wait_until(lambda: not any(running(pid) for pid in pids) and not folder.exists())


def test_a_group_is_ended_while_its_starter_goes_on(tmp_path: Path) -> None:
    process = start_group([sys.executable, "-c", DEAF], seconds=60.0, folder=tmp_path, stdout=subprocess.PIPE)
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    assert all(map(running, pids))
    end_group(process, 0.2)
    wait_until(lambda: not any(map(running, pids)))
    assert tmp_path.exists()
