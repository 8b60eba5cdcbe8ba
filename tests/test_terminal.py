"""Progress: plain lines without a terminal, a live bar on one, nothing on stdout. Tables: plain text in columns."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time

import pytest

from aster import terminal
from aster.terminal import Progress, aligned, say


def test_first_and_last_lines_are_plain_and_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("rl", 3, "steps") as bar:
        for reward in (0.25, 0.5, 0.75):
            bar.advance(reward=reward, note="ok", tool_calls=12345.0)
        say("a [note] in between")
    captured = capsys.readouterr()
    assert captured.out == ""
    first, note, last = captured.err.splitlines()
    assert first == "rl: 0/3 steps"
    assert note == "a [note] in between"
    assert re.fullmatch(r"rl: 3/3 steps, [\d.,e+]+ steps/s, reward 0\.75, note ok, tool calls 12,345", last)


def test_lines_come_no_faster_than_their_interval(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Progress("sft", 60, "steps", done=20) as bar:
        for _ in range(40):
            now += 1.0
            bar.advance()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["20/60", *(f"{done}/60" for done in range(25, 61, 5))]
    # The rate is of the steps done here; what was done before does not count.
    assert lines[1] == "sft: 25/60 steps, 1 steps/s, 0:35 left"


def test_the_last_line_comes_when_work_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with Progress("rl", 3, "steps") as bar:
            bar.advance()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert capsys.readouterr().err.splitlines()[-1].startswith("rl: 1/3 steps")


def test_nothing_to_do_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("rl", 0, "steps"):
        pass
    assert capsys.readouterr().err == "rl: 0/0 steps\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (90061, "25:01:01")]
)
def test_time_left_is_written_as_a_clock(seconds: float, text: str) -> None:
    assert terminal._clock(seconds) == text


def test_a_table_has_its_first_column_on_the_left_and_the_others_on_the_right() -> None:
    assert aligned([("name", "k"), ("a longer one", "7"), ("b", "1,024")]) == [
        "name              k",
        "------------  -----",
        "a longer one      7",
        "b             1,024",
    ]


def test_a_terminal_gets_a_live_bar_that_nests_and_lets_lines_through() -> None:
    code = (
        "from aster.terminal import Progress, say\n"
        "with Progress('outer [x]', 2, 'steps') as outer, Progress('inner', 4, 'calls') as inner:\n"
        "    inner.advance(4, reward=0.5)\n"
        "    say('a [note]')\n"
        "    outer.advance(2)\n"
        "print('result')\n"
    )
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "160"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=follower, env=environment)
    os.close(follower)
    shown = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # the terminal's other end closed
            break
        if not piece:
            break
        shown += piece
    output, _ = process.communicate()
    os.close(leader)
    assert process.returncode == 0
    assert output == b"result\n"
    text = shown.decode()
    assert "\x1b[" in text
    for expected in ("outer [x]", "4/4", "calls", "a [note]", "reward 0.5"):
        assert expected in text
