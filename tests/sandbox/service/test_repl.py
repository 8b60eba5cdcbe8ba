"""``aster sandbox run`` at a terminal and with piped input."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aster_sandbox.repl import Cells
from tests.sandbox.conftest import ISOLATION
from tests.sandbox.service.services import ALICE, Service, level_line

COMMAND = [sys.executable, "-m", "aster", "sandbox", "run", "sandbox.preload=[]", f"sandbox.isolation={ISOLATION}"]


def piped(text: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    more = {**os.environ, **environment}
    return subprocess.run([*COMMAND, *arguments], input=text, capture_output=True, text=True, check=False, env=more, timeout=60)


def test_piped_lines_are_cells_and_commands(tmp_path: Path) -> None:
    (tmp_path / "setup.py").write_text("def ask(x): return 2 * x")
    text = """\
x = ask(20)
for i in range(2):
    print(i)
x + 1
:fork
x = 99
:sessions
:switch 1
x
1 / 0
:reset
'x' in globals()
ask(1)
:nonsense
:quit
print("never")
"""
    result = piped(text, "--setup", str(tmp_path / "setup.py"))
    assert (result.returncode, result.stderr) == (0, level_line())
    lines = result.stdout.splitlines()
    assert lines[:7] == ["0", "1", "41", "[session 2, forked from 1]", "  1", "* 2  forked from 1", "[session 1]"]
    assert lines[7] == "40"
    help_at = next(place for place, line in enumerate(lines) if line.startswith(":fork"))
    assert lines[help_at - 4 : help_at] == ["ZeroDivisionError: division by zero", "[session 1 is new]", "False", "2"]
    assert [line.split()[0] for line in lines[help_at:]] == [":fork", ":sessions", ":switch", ":reset", ":put", ":get", ":quit"]


def test_put_and_get_copy_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in put").write_bytes(b"\x00abc")
    text = """\
:put "in put"
:put "in put" data/x
open('in put', 'rb').read() == open('data/x', 'rb').read()
_ = open('out', 'wb').write(b'\\x00out')
:get out
:get out
:get out "in put"
:get data/x
:put none
:get none
:get /
:put
:put a b c
:put "a
"still here"
"""
    beginnings = [
        *("[copied in put ", "[copied in put ", "True", "[copied out ", "[:get out: ", "[copied out ", "[copied data/x "),
        *("[:put none: ", "[:get none: ", "[:get /: ", "[:put: ", "[:put a b c: ", '[:put "a: ', "'still here'"),
    ]
    lines = piped(text).stdout.splitlines()
    assert [line[: len(beginning)] for line, beginning in zip(lines, beginnings, strict=True)] == beginnings
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "in put": b"\x00out",
        "out": b"\x00out",
        "x": b"\x00abc",
    }


def test_end_of_input_ends_a_block() -> None:
    assert piped("def f():\n    return 5\n\nfor i in range(2):\n    print(f() + i)").stdout == "5\n6\n"


def test_prompt_on_a_service(service: Service) -> None:
    arguments = ["sandbox.cell_seconds=5", "sandbox.memory_mb=256", "sandbox.output_characters=2000"]
    result = piped(
        "x = 1\n:fork\nx += 1\nx\n:switch 1\nx\nopen('/none')\n:get none\n",
        *arguments,
        f"sandbox.addresses=['{service.url}']",
        ASTER_SANDBOX_TOKEN=ALICE,
    )
    lines = result.stdout.splitlines()
    assert lines[:4] == ["[session 2, forked from 1]", "2", "[session 1]", "1"]
    assert lines[-1].startswith("[:get none: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--setup", "nowhere.py"], "--setup nowhere.py: "),
        (["sandbox.addresses=['nowhere']"], "'sandbox.addresses.0'"),
        (["sandbox.addresses=['http://127.0.0.1:1']"], "http://127.0.0.1:1: ConnectError"),
    ],
)
def test_user_errors_are_one_line(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from aster.cli import main

    monkeypatch.setattr("aster_sandbox.client.ENTER_SECONDS", 0.5)
    result = CliRunner().invoke(main, ["sandbox", "run", *arguments])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


def test_terminal_prompt_with_ctrl_c_and_ctrl_d() -> None:
    terminal, side = pty.openpty()
    process = subprocess.Popen(COMMAND, stdin=side, stdout=side, stderr=side, start_new_session=True, preexec_fn=_take_terminal)
    os.close(side)
    seen = ""

    def until(text: str, again: bytes = b"") -> None:
        nonlocal seen
        end = time.monotonic() + 30
        while text not in seen:
            assert time.monotonic() < end, seen
            if select.select([terminal], [], [], 1)[0]:
                seen += os.read(terminal, 4096).decode()
            elif again:
                os.write(terminal, again)
        seen = seen.partition(text)[2]

    until(">>> ")
    os.write(terminal, b"x = 1\n")
    until(">>> ")
    os.write(terminal, b"for i in range(2):\n")
    until("... ")
    os.write(terminal, b"  print('line', i)\n\n")
    until("line 1")
    until(">>> ")
    os.write(terminal, b"import time; time.sleep(60)\n")
    until("60")
    time.sleep(0.5)
    os.write(terminal, b"\x03")
    until("[interrupted; the state before this cell is kept]")
    until(">>> ")
    os.write(terminal, b"x + 41\n")
    until("42")
    until(">>> ")
    os.write(terminal, b"half = (\n")
    until("... ")
    os.write(terminal, b"\x03")
    # CPython's readline loses a Ctrl-C that comes after its prompt but before it waits for a key, so press it again.
    until("KeyboardInterrupt", again=b"\x03")
    until(">>> ")
    os.write(terminal, b"\x04")
    assert process.wait(30) == 0
    os.close(terminal)


@pytest.mark.parametrize("person", [True, False])
def test_notice_while_waiting_for_the_first_prompt(person: bool, tmp_path: Path) -> None:
    (tmp_path / "setup.py").write_text("import time\ntime.sleep(1.5)")
    terminal, side = pty.openpty()
    command = [*COMMAND, "--setup", str(tmp_path / "setup.py")]
    given = side if person else subprocess.PIPE
    with subprocess.Popen(command, stdin=given, stdout=side, stderr=subprocess.PIPE, text=True) as process:
        os.close(side)
        if person:
            os.write(terminal, b":quit\n")
        errors = process.communicate("" if not person else None, timeout=60)[1]
    os.close(terminal)
    assert process.returncode == 0
    assert set(errors.splitlines(keepends=True)) == {level_line()} | ({"sandbox: loading Python ...\n"} if person else set())


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ("1\n2", ["1", "2"]),
        ("if x:\n  1\nelse:\n  2\n3", ["if x:\n  1\nelse:\n  2", "3"]),
        ("if x:\n  1\n\n3", ["if x:\n  1\n", "3"]),
        ("@d\ndef f():\n  pass\nf()", ["@d\ndef f():\n  pass", "f()"]),
        ("x = '''a\nb\n\nc'''\n1", ["x = '''a\nb\n\nc'''", "1"]),
        ("f(\n1,\n2)\n3", ["f(\n1,\n2)", "3"]),
        ("def f(:\n1", ["def f(:", "1"]),
        ("try:\n  1\nfinally:\n  2\nwhile x:\n  3", ["try:\n  1\nfinally:\n  2", "while x:\n  3"]),
        ("await f()\nasync def g():\n  pass\ng()", ["await f()", "async def g():\n  pass", "g()"]),
        ("\n\n# only\n1", ["# only", "1"]),
    ],
)
def test_lines_are_grouped_into_cells(text: str, cells: list[str]) -> None:
    gathered = Cells()
    found = [cell for line in text.split("\n") for cell in gathered.add(line)]
    assert [*found, *gathered.rest()] == cells
