"""``/run_jupyter``: running cells as a notebook does."""

from __future__ import annotations

import base64
from typing import Any

import httpx2
import pytest


def notebook(http: httpx2.Client, *cells: str, **more: Any) -> dict[str, Any]:
    """The reply of ``/run_jupyter`` to a request as its client sends it."""
    body = {"cells": list(cells), "cell_timeout": 0, "total_timeout": 45, "kernel": "python3", "files": {}, "fetch_files": []}
    response = http.post("/run_jupyter", json={**body, **more})
    assert response.status_code == 200, response.text
    reply = response.json()
    assert set(reply) == {"status", "message", "driver", "cells", "executor_pod_name", "files"}
    assert all(set(cell) == {"stdout", "stderr", "display", "error"} for cell in reply["cells"])
    assert isinstance(reply, dict)
    return reply


def cells(http: httpx2.Client, *codes: str, **more: Any) -> list[dict[str, Any]]:
    """Run a notebook, which must succeed, and return its cells."""
    reply = notebook(http, *codes, **more)
    assert (reply["status"], reply["message"], reply["driver"]["status"]) == ("Success", "", "Finished")
    assert len(reply["cells"]) == len(codes)
    found: list[dict[str, Any]] = reply["cells"]
    return found


def test_stdout_stderr_display_and_error_are_separate(http: httpx2.Client) -> None:
    found = cells(
        http, "a = 'hello'", "a", "print(a)", "import sys\n_ = sys.stderr.write('careful\\n')", "print(1)\nassert a == ''"
    )
    assert found[:4] == [
        {"stdout": "", "stderr": "", "display": [], "error": []},
        {"stdout": "", "stderr": "", "display": [{"text/plain": "'hello'"}], "error": []},
        {"stdout": "hello\n", "stderr": "", "display": [], "error": []},
        {"stdout": "", "stderr": "careful\n", "display": [], "error": []},
    ]
    (error,) = found[4].pop("error")
    assert found[4] == {"stdout": "1\n", "stderr": "", "display": []}
    assert (error["ename"], error["evalue"]) == ("AssertionError", "")
    assert error["traceback"] == [
        "Traceback (most recent call last):",
        '  File "<cell 5>", line 2, in <module>',
        "    assert a == ''",
        "AssertionError",
    ]


@pytest.mark.parametrize(
    ("code", "name", "value"),
    [
        ("raise ValueError('one\\ntwo')", "ValueError", "one\ntwo"),
        ("def f(:", "SyntaxError", "invalid syntax (<cell 2>, line 1)"),
        ("import sys\nsys.exit(3)", "SystemExit", "3"),
        ("sys.exit('no')", "SystemExit", "no"),
        ("class Silent(Exception):\n    def __str__(self): raise ValueError\nraise Silent", "Silent", ""),
        ("raise ValueError('\\ud800')", "ValueError", "?"),
        ("x = bytearray(3 << 30)", "MemoryError", ""),
    ],
)
def test_next_cell_runs_after_a_failing_one(http: httpx2.Client, code: str, name: str, value: str) -> None:
    first, failed, last = cells(http, "import sys\nx = 1", code, "x += 1\nx")
    (error,) = failed["error"]
    assert (error["ename"], error["evalue"]) == (name, value)
    assert not first["error"]
    assert last["display"] == [{"text/plain": "2"}]


def test_values_are_shown_in_all_their_forms(http: httpx2.Client) -> None:
    code = """
class Shown:
    def __repr__(self): return "plain"
    def _repr_html_(self): return "<b>html</b>"
    def _repr_png_(self): return b"\\x89PNG"
    def _repr_latex_(self): raise ValueError
    def _repr_json_(self): return {"nan": float("nan")}
    def _repr_mimebundle_(self, include=None, exclude=None): return {"text/x": ["own"]}, {"metadata": 1}
display(Shown(), 5)
display("between")
Shown
"""
    (cell,) = cells(http, code)
    assert cell["display"] == [
        {
            "text/plain": "plain",
            "text/x": ["own"],
            "text/html": "<b>html</b>",
            "image/png": base64.b64encode(b"\x89PNG").decode(),
            "application/json": "{'nan': nan}",
        },
        {"text/plain": "5"},
        {"text/plain": "'between'"},
        {"text/plain": "<class '__main__.Shown'>"},
    ]


def test_figures_are_displayed(http: httpx2.Client) -> None:
    plot = "plt.plot([1, 2])\nplt.title('T')"
    found = cells(
        http,
        f"import matplotlib.pyplot as plt\n{plot};",
        f"{plot}\nplt.show()\nprint('after')",
        f"figure = plt.figure()\n{plot}\ndisplay(figure)\nNone",
        "plt.get_fignums()",
        "import os\nos.listdir()",
        "figure, _ = plt.subplots()\n_.set_title('$\\\\nope{$')\nNone",
        "1",
    )
    images = [[base64.b64decode(forms["image/png"])[:4] for forms in cell["display"] if "image/png" in forms] for cell in found]
    assert images == [[b"\x89PNG"]] * 3 + [[], [], [], []]
    assert found[1]["stdout"] == "after\n"
    assert [found[place]["display"] for place in (3, 4, 6)] == [
        [{"text/plain": "[]"}],
        [{"text/plain": "[]"}],
        [{"text/plain": "1"}],
    ]
    assert [error["ename"] for error in found[5]["error"]] == ["ValueError"]


def test_cells_work_as_in_a_notebook(http: httpx2.Client) -> None:
    found = cells(
        http,
        "import asyncio\nqueue = asyncio.Queue()\ntask = asyncio.ensure_future(queue.get())\nawait asyncio.sleep(0)",
        "await queue.put(5)\nawait task",
        "```python\nx = 3\nx\n```",
        "def f():\n    raise KeyError(1)",
        "f()",
        "input()",
        "'shown'",
        "'not shown';",
        "_",
    )
    assert [cell["display"] for cell in found[1:3]] == [[{"text/plain": "5"}], [{"text/plain": "3"}]]
    assert [line for line in found[4]["error"][0]["traceback"] if "File" in line or "raise" in line] == [
        '  File "<cell 5>", line 1, in <module>',
        '  File "<cell 4>", line 2, in f',
        "    raise KeyError(1)",
    ]
    assert found[5]["error"][0]["ename"] == "EOFError"
    assert [[forms["text/plain"] for forms in cell["display"]] for cell in found[6:]] == [["'shown'"], [], ["'shown'"]]


def test_cell_timeout_ends_one_cell(http: httpx2.Client) -> None:
    code = "import time\nx = 2\nprint('before')\ntime.sleep(3)\nx = 3"
    _, late, last = cells(http, "x = 1", code, "x", cell_timeout=0.3)
    assert (late["stdout"], [error["ename"] for error in late["error"]]) == ("before\n", ["CellTimeout"])
    assert last["display"] == [{"text/plain": "2"}]


def test_cell_timeout_is_capped_by_cell_seconds(narrow: httpx2.Client) -> None:
    late, last = cells(narrow, "import time\nprint('before')\ntime.sleep(60)", "1", total_timeout=60)
    assert (late["stdout"], [error["ename"] for error in late["error"]]) == ("before\n", ["CellTimeout"])
    assert last["display"] == [{"text/plain": "1"}]
    # A cell that cannot be interrupted is killed.
    _, late, last = cells(narrow, "x = 1", "print('before')\nsum(range(10**13))", "x", total_timeout=60)
    assert (late["stdout"], [error["ename"] for error in late["error"]]) == ("before\n", ["CellTimeout"])
    assert "so it was killed" in late["error"][0]["evalue"]
    assert last["display"] == [{"text/plain": "1"}]


def test_total_timeout(http: httpx2.Client) -> None:
    reply = notebook(http, "print(1)", "print(2)\nwhile True: pass", "print(3)", total_timeout=0.5)
    assert (reply["status"], reply["driver"]["status"], reply["driver"]["return_code"]) == ("Failed", "TimeLimitExceeded", None)
    assert [cell["stdout"] for cell in reply["cells"]] == ["1\n", "2\n"]
    reply = notebook(http, "print(1)", total_timeout=0)
    assert (reply["status"], reply["cells"]) == ("Failed", [])


def test_crash_of_a_cell_keeps_earlier_state(http: httpx2.Client) -> None:
    _, dead, last = cells(http, "x = [1]", "x.append(2)\nprint('last words')\nimport os\nos._exit(3)", "display(len(x))")
    (error,) = dead["error"]
    assert (dead["stdout"], error["ename"]) == ("last words\n", "DeadKernelError")
    assert "exited with status 3" in error["evalue"]
    assert last["display"] == [{"text/plain": "1"}]


def test_files_of_a_notebook(http: httpx2.Client) -> None:
    files = {"data/in.csv": base64.b64encode(b"1,2").decode(), "left_out": None}
    reply = notebook(
        http, "text = open('data/in.csv').read()", "open('out', 'w').write(text[::-1])", files=files, fetch_files=["out", "no"]
    )
    assert {name: base64.b64decode(content) for name, content in reply["files"].items()} == {"out": b"2,1"}


@pytest.mark.parametrize(
    "more", [{"files": {"../x": ""}}, {"files": {"x": "?"}}, {"fetch_files": ["/etc/passwd"]}, {"fetch_files": ["big"]}]
)
def test_invalid_requests_get_a_sandbox_error(http: httpx2.Client, more: dict[str, Any]) -> None:
    reply = notebook(http, "_ = open('big', 'wb').write(bytes(5 << 20))", **more)
    assert (reply["status"], reply["driver"], reply["cells"]) == ("SandboxError", None, [])
    assert len(reply["message"].splitlines()) == 1
    assert reply["message"].startswith(next(iter(more)))


def test_display_beyond_the_size_limit_is_replaced_by_a_note(http: httpx2.Client) -> None:
    code = "'a' * (5 << 20)"
    shown = [cell["display"][0]["text/plain"] for cell in cells(http, *[code] * 4, "1")]
    assert [len(text) for text in shown[:3]] == [(5 << 20) + 2] * 3
    assert shown[3].startswith("[not shown: ")


def test_notebooks_share_nothing_and_leave_nothing(http: httpx2.Client) -> None:
    cells(http, "x = 1\nopen('left', 'w').close()")
    (cell,) = cells(http, "import os\nprint('x' in globals(), os.listdir())")
    assert cell["stdout"] == "False []\n"
    assert http.get("/v1/sessions").json() == {"sessions": []}


@pytest.mark.parametrize(
    "body", [{}, {"cells": "1"}, {"cells": [1]}, {"cells": [], "kernel": "R"}, {"cells": [], "total_timeout": -1}]
)
def test_invalid_bodies_are_refused(http: httpx2.Client, body: dict[str, Any]) -> None:
    assert http.post("/run_jupyter", json=body).status_code == 422
