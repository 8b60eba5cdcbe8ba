"""SandboxFusion's and the community reproduction's requests, as their clients send them, at every isolation level."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.sandbox.conftest import levels_here
from tests.sandbox.service.services import ALICE, BOB, Service, as_alice, run

RESPONSE = {"status", "message", "compile_result", "run_result", "executor_pod_name", "files"}
RESULT = {"status", "execution_time", "return_code", "stdout", "stderr"}


@pytest.fixture(scope="module", params=levels_here())
def _leveled(request: pytest.FixtureRequest) -> Iterator[Service]:
    settings = ["sandbox.cell_seconds=5", "sandbox.memory_mb=256", "sandbox.output_characters=2000"]
    service = Service(*settings, tokens=ALICE, isolation=request.param)
    yield service
    service.stop()


@pytest.fixture
def http(_leveled: Service) -> Iterator[httpx2.Client]:
    """Alice's HTTP client for a service at each level. Her sessions are closed afterwards."""
    yield from as_alice(_leveled)


def script(http: httpx2.Client, code: str, **more: Any) -> dict[str, Any]:
    """The reply of ``/run_code`` to a request as verl sends it."""
    body = {
        "compile_timeout": 30,
        "run_timeout": 30,
        "code": code,
        "stdin": None,
        "memory_limit_MB": 1024,
        "language": "python",
        "files": {},
        "fetch_files": [],
    }
    response = http.post("/run_code", json={**body, **more})
    assert response.status_code == 200, response.text
    reply = response.json()
    assert set(reply) == RESPONSE
    assert reply["run_result"] is None or set(reply["run_result"]) == RESULT
    assert isinstance(reply, dict)
    return reply


def cell(http: httpx2.Client, code: str, session: str | None = "s", **more: Any) -> dict[str, Any]:
    """The reply of ``/run_stateful_code``."""
    response = http.post("/run_stateful_code", json={"code": code, "language": "python", "session_id": session, **more})
    assert response.status_code == 200, response.text
    reply = response.json()
    assert set(reply) == RESPONSE | {"session_id"}
    assert isinstance(reply, dict)
    return reply


def test_script_has_no_echo_and_separate_streams(http: httpx2.Client) -> None:
    reply = script(http, "import sys\nprint('out')\nprint('err', file=sys.stderr)\n42")
    assert reply["status"] == "Success"
    assert reply["compile_result"] is None
    result = reply["run_result"]
    assert (result["status"], result["return_code"], result["stdout"], result["stderr"]) == ("Finished", 0, "out\n", "err\n")
    assert result["execution_time"] > 0


def test_streams_of_subprocesses_and_raw_writes_are_separate(http: httpx2.Client) -> None:
    code = "import os, subprocess\nos.write(2, b'raw ')\nsubprocess.run('echo out; echo err >&2', shell=True)"
    result = script(http, code)["run_result"]
    assert (result["stdout"], result["stderr"]) == ("out\n", "raw err\n")


def test_script_is_main_and_runs_exit_functions(http: httpx2.Client) -> None:
    code = """
import atexit, sys, threading, time
atexit.register(print, "bye")
threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
if __name__ == "__main__":
    print("main", len(sys.argv), __file__.endswith(".py"))
print(sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__)
"""
    assert script(http, code)["run_result"]["stdout"] == "main 1 True\nTrue True True\nthread\nbye\n"


@pytest.mark.parametrize(
    ("code", "return_code", "stderr"),
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('no')", 1, "no\n"),
        ("import os; os._exit(4)", 4, ""),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import ctypes; ctypes.string_at(0)", -11, ""),
        ("def f(:", 1, "SyntaxError: invalid syntax\n"),
        ("def f():\n    raise ValueError(1)\nf()", 1, "line 3, in <module>\n    f()\n"),
        ("x = bytearray(3 << 30)", 1, "MemoryError\n"),
        ("input()", 1, "EOFError: EOF when reading a line\n"),
    ],
)
def test_return_code_of_a_script(http: httpx2.Client, code: str, return_code: int, stderr: str) -> None:
    reply = script(http, "print('before')\n" + code if "def" not in code else code)
    assert reply["status"] == "Failed"
    assert reply["run_result"]["status"] == "Finished"
    assert reply["run_result"]["return_code"] == return_code
    assert stderr in reply["run_result"]["stderr"].replace("line 4", "line 3")
    assert "inside.py" not in reply["run_result"]["stderr"]


def test_memory_limit_of_a_script(http: httpx2.Client) -> None:
    code = "x = bytearray(100 << 20)\nprint(len(x) >> 20)"
    for megabytes, stdout in ((50, ""), (150, "100\n"), (4096, "100\n"), (-1, "100\n")):
        result = script(http, code, memory_limit_MB=megabytes)["run_result"]
        assert (result["stdout"], result["return_code"]) == (stdout, 0 if stdout else 1)
        assert result["stderr"].endswith("" if stdout else "MemoryError\n")


@pytest.mark.parametrize("code", ["while True: pass", "import signal, time\nsignal.signal(2, signal.SIG_IGN)\ntime.sleep(60)"])
def test_script_is_killed_at_its_time_limit(http: httpx2.Client, code: str) -> None:
    reply = script(http, "print('before')\n" + code, run_timeout=0.3)
    assert reply["status"] == "Failed"
    result = reply["run_result"]
    assert (result["status"], result["return_code"], result["stdout"]) == ("TimeLimitExceeded", None, "before\n")


def test_run_timeout_is_capped_by_cell_seconds(narrow: httpx2.Client) -> None:
    # cell_seconds is 2 there, so the script gets 1.8 s.
    result = script(narrow, "print('before')\nimport time\ntime.sleep(60)", run_timeout=3600)["run_result"]
    assert (result["status"], result["stdout"]) == ("TimeLimitExceeded", "before\n")


def test_stdin_and_files_of_a_script(http: httpx2.Client) -> None:
    code = """
import sys
with open("data/in.bin", "rb") as file: data = file.read()
with open("out.txt", "w") as file: file.write(sys.stdin.read().upper())
print(data, open("script.py").read() != "")
"""
    files = {"data/in.bin": base64.b64encode(b"\x00\xff").decode(), "left_out": None}
    stdin = "ünï\n" * 30_000  # more than a pipe holds
    reply = script(http, code, stdin=stdin, files=files, fetch_files=["out.txt", "none.txt"])
    assert reply["run_result"]["stdout"] == "b'\\x00\\xff' True\n"
    assert set(reply["files"]) == {"out.txt"}
    assert base64.b64decode(reply["files"]["out.txt"]).decode() == stdin.upper()


def test_absolute_paths_work_below_tmp_only_at_namespaces(http: httpx2.Client) -> None:
    more: dict[str, Any] = {
        "files": {"/tmp/data/in": base64.b64encode(b"in").decode()},
        "fetch_files": ["/tmp/data/in", "/tmp/out", "/tmp/none"],
    }
    reply = script(http, "open('/tmp/out', 'w').write(open('/tmp/data/in').read() * 2)", **more)
    if http.get("/v1/settings").json()["isolation"] == "namespaces":
        assert {name: base64.b64decode(content) for name, content in reply["files"].items()} == {
            "/tmp/data/in": b"in",
            "/tmp/out": b"inin",
        }
        assert cell(http, "print(open('/tmp/data/in').read())", None, files=more["files"])["run_result"]["stdout"] == "in\n"
        return
    for given in ({"files": more["files"]}, {"fetch_files": more["fetch_files"]}):
        for answer in (script(http, "print(1)", **given), cell(http, "print(1)", None, **given)):
            assert (answer["status"], answer["run_result"]) == ("SandboxError", None)
            assert answer["message"].startswith(f"{next(iter(given))}: '/tmp/data/in': ")
            assert "\n" not in answer["message"]


@pytest.mark.parametrize(
    "more",
    [
        {"files": {"../outside": ""}},
        {"files": {"/etc/outside": ""}},
        {"files": {"/tmp/../etc/outside": ""}},
        {"files": {"/tmp": ""}},
        {"files": {"script.py/x": ""}},
        {"files": {"a\0b": ""}},
        {"files": {"x": "not base64!"}},
        {"fetch_files": ["../../../etc/passwd"]},
        {"fetch_files": ["/etc/passwd"]},
        {"fetch_files": [""]},
        {"language": "cpp"},
        {"language": "bash"},
    ],
)
def test_invalid_requests_get_a_sandbox_error(http: httpx2.Client, more: dict[str, Any]) -> None:
    reply = script(http, "print(1)", **more)
    assert reply["status"] == "SandboxError"
    assert reply["run_result"] is None
    assert reply["message"]


def test_overload_is_answered_with_504(tight: Service, narrow: httpx2.Client) -> None:
    """SandboxFusion's clients repeat only requests that were answered with 504."""
    soon = {"run_timeout": 0, "compile_timeout": 0}
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/run_code", {"code": "1", **soon}),
        ("/run_stateful_code", {"code": "1", **soon}),
        ("/run_jupyter", {"cells": ["1"], "total_timeout": 0}),
    ]
    with tight.client(BOB) as bob:
        for name in ("a", "b"):
            assert narrow.post("/v1/sessions", json={"id": name}).status_code == 201
        assert bob.post("/v1/sessions", json={"id": "a"}).status_code == 201
        for client in (narrow, bob):  # one has reached its limit; for the other, the service is full
            for path, body in requests:
                refused = client.post(path, json=body)
                assert refused.status_code == 504
                assert int(refused.headers["retry-after"]) > 0
                assert refused.json()["detail"]
        bob.delete("/v1/sessions/a")
    for name in ("a", "b"):
        narrow.delete(f"/v1/sessions/{name}")
    assert [narrow.post(path, json=body).status_code for path, body in requests] == [200, 200, 200]


def test_first_mebibyte_of_output_is_kept(http: httpx2.Client) -> None:
    # The sandbox's own limit is 2,000 characters.
    result = script(http, "print('a' * 300_000)")["run_result"]
    assert result["stdout"] == "a" * 300_000 + "\n"
    result = script(http, "for _ in range(40): print('ab' * 50_000)")["run_result"]
    assert result["return_code"] == 0
    assert len(result["stdout"]) == 1 << 20


def test_scripts_share_nothing_and_leave_nothing(http: httpx2.Client) -> None:
    script(http, "import subprocess\nopen('left', 'w').close()\nx = 1\nsubprocess.Popen(['sleep', '600'])")
    reply = script(http, "import os\nprint(os.path.exists('left'), 'x' in globals())")
    assert reply["run_result"]["stdout"] == "False False\n"
    assert http.get("/v1/sessions").json() == {"sessions": []}


def test_script_has_none_of_its_sessions_descriptors(http: httpx2.Client) -> None:
    code = """
import os
for fd in range(3, 1024):
    try:
        os.fstat(fd)
        print(fd)
    except OSError:
        pass
print("looked")
"""
    assert script(http, code)["run_result"]["stdout"] == "looked\n"


def test_script_that_kills_its_session_affects_no_other(http: httpx2.Client) -> None:
    reply = script(http, "import os\nos.kill(os.getppid(), 9)\nimport time\ntime.sleep(30)")
    assert reply["status"] in ("Failed", "SandboxError")
    assert script(http, "print(1)")["run_result"]["stdout"] == "1\n"


def test_cells_keep_their_state_by_session_id(http: httpx2.Client) -> None:
    first = cell(http, "x = [math.factorial(5), sp.Integer(2)]", None)
    assert first["status"] == "Success"
    session = first["session_id"]
    assert session
    assert cell(http, "print(x)\nx", session)["run_result"]["stdout"] == "[120, 2]\n"
    assert cell(http, "print(x)", "another")["run_result"]["return_code"] == 1
    assert cell(http, "print(len(x))", session)["run_result"]["stdout"] == "2\n"


def test_error_of_a_cell_is_in_stderr_and_state_is_kept(http: httpx2.Client) -> None:
    reply = cell(http, "import sys\nx = 1\nprint('out')\nprint('err', file=sys.stderr)\nx = 2\n1 / 0")
    assert reply["status"] == "Failed"
    result = reply["run_result"]
    assert (result["status"], result["return_code"], result["stdout"]) == ("Finished", 1, "out\n")
    assert result["stderr"].startswith("err\nTraceback (most recent call last):\n")
    assert result["stderr"].endswith("    1 / 0\nZeroDivisionError: division by zero\n")
    assert "inside.py" not in result["stderr"]
    again = cell(http, "print(x)")
    assert (again["status"], again["run_result"]["stdout"], again["run_result"]["stderr"]) == ("Success", "2\n", "")


@pytest.mark.parametrize(
    ("code", "status", "return_code", "note"),
    [
        ("import os\nprint('last words')\nos._exit(3)", "Finished", 3, "[crashed: the Python interpreter exited with status 3"),
        ("import ctypes\nprint('last words')\nctypes.string_at(0)", "Finished", -11, "was killed by SIGSEGV"),
        ("print('last words')\nwhile True: pass", "TimeLimitExceeded", None, ""),
    ],
)
def test_crash_or_timeout_of_a_cell_keeps_earlier_state(
    http: httpx2.Client, code: str, status: str, return_code: int | None, note: str
) -> None:
    cell(http, "x = 7")
    reply = cell(http, code, run_timeout=0.3)
    assert reply["status"] == "Failed"
    result = reply["run_result"]
    assert (result["status"], result["return_code"], result["stdout"]) == (status, return_code, "last words\n")
    assert note in result["stderr"]
    assert cell(http, "print(x)")["run_result"]["stdout"] == "7\n"


def test_cell_beyond_cell_seconds_is_a_timeout(narrow: httpx2.Client) -> None:
    code = "import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\nx = 1\nprint('before')\nwhile True: pass"
    result = cell(narrow, code, run_timeout=60)["run_result"]
    assert (result["status"], result["return_code"], result["stdout"]) == ("TimeLimitExceeded", None, "before\n")
    assert result["stderr"].startswith("Traceback")
    assert "line 5, in <module>" in result["stderr"]
    assert result["stderr"].endswith("[timeout: the cell was interrupted after 2 s; all variables are kept]")


def test_stdin_and_files_of_cells(http: httpx2.Client) -> None:
    reply = cell(http, "print(input() + open('f').read())", stdin="a\nb\n", files={"f": base64.b64encode(b"!").decode()})
    assert reply["run_result"]["stdout"] == "a!\n"
    assert cell(http, "input()")["run_result"]["stderr"].endswith("EOFError: EOF when reading a line\n")


def test_cell_sent_twice_runs_once(http: httpx2.Client) -> None:
    cell(http, "n = 0")
    first = cell(http, "n += 1\nprint(n)", request_id="r1")
    assert cell(http, "n += 1\nprint(n)", request_id="r1") == first
    assert cell(http, "print(n)")["run_result"]["stdout"] == "1\n"


def test_stderr_of_cells_is_a_normal_stream(http: httpx2.Client) -> None:
    code = """
import subprocess, sys
sys.stderr.buffer.write(b"raw ")
print("text", file=sys.stderr)
subprocess.run(["echo", "from below"], stdout=sys.stderr)
print(sys.stderr.encoding, sys.stdout.isatty(), sys.stderr is sys.__stderr__)
"""
    result = cell(http, code)["run_result"]
    assert (result["stderr"], result["stdout"]) == ("raw text\n", "from below\nutf-8 False True\n")
    for breaking in ("import sys\nsys.stderr.close()", "import sys\nsys.stderr.detach()", "import sys\ndel sys.stderr"):
        cell(http, breaking)
        assert cell(http, "import sys\nprint('again', file=sys.stderr)")["run_result"]["stderr"] == "again\n"


def test_cells_are_repaired_and_may_await(http: httpx2.Client) -> None:
    assert cell(http, "```python\nx = 5\nprint(x)\n```")["run_result"]["stdout"] == "5\n"
    assert cell(http, "import asyncio\nawait asyncio.sleep(0)\nprint('awaited')")["run_result"]["stdout"] == "awaited\n"


def test_loop_that_swallows_an_interrupt_gets_another(narrow: httpx2.Client) -> None:
    code = "x = 1\ntry:\n    while True: pass\nexcept KeyboardInterrupt: pass\nwhile True: pass"
    result = cell(narrow, code, "s", run_timeout=0.2)["run_result"]
    assert (result["status"], result["return_code"]) == ("TimeLimitExceeded", None)
    assert "[timeout: " not in result["stderr"]  # it did not reach cell_seconds
    assert cell(narrow, "print(x)", "s")["run_result"]["stdout"] == "1\n"
    narrow.delete("/v1/sessions/s")


def test_killed_cell_does_not_return_an_earlier_result(narrow: httpx2.Client) -> None:
    cell(narrow, "import sys\nprint('out')\nprint('err', file=sys.stderr)", "s")
    result = cell(narrow, "sum(range(10**13))", "s", run_timeout=60)["run_result"]
    assert (result["status"], result["stdout"]) == ("TimeLimitExceeded", "")
    assert result["stderr"].startswith("[timeout: the cell ran longer than 2 s")
    narrow.delete("/v1/sessions/s")


def test_code_that_destroys_its_result_is_an_error(http: httpx2.Client) -> None:
    code = "import aster_sandbox.service.inside as inside\ninside._session.keep = lambda *_: None"
    for _ in range(2):
        reply = cell(http, code)
        assert (reply["status"], reply["run_result"]) == ("SandboxError", None)
        assert reply["message"]


def test_logging_goes_to_the_cell_that_logs(http: httpx2.Client) -> None:
    cell(http, "import logging\nlogging.basicConfig()\nlogging.warning('one')")
    assert cell(http, "logging.warning('two')")["run_result"]["stderr"] == "WARNING:root:two\n"


def test_session_of_a_stateful_cell_is_an_ordinary_session(http: httpx2.Client) -> None:
    cell(http, "x = 3", "shared-1")
    assert run(http, "shared-1", "x")["output"] == "3"
    assert http.delete("/v1/sessions/shared-1").status_code == 204
    assert cell(http, "print('x' in globals())", "shared-1")["run_result"]["stdout"] == "False\n"
    assert cell(http, "1", "shared-1", language="cpp")["status"] == "SandboxError"
