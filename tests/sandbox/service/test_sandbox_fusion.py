"""SandboxFusion's own client, the package ``sandbox-fusion``, works with the service."""

from __future__ import annotations

import asyncio
import base64

import httpx2
import pytest
from sandbox_fusion import (
    CommandRunStatus,
    RunCodeRequest,
    RunJupyterRequest,
    RunStatus,
    SummaryMapping,
    run_code,
    run_code_async,
    run_concurrent,
    run_jupyter,
    run_jupyter_async,
    summary_run_code_result,
)

from tests.sandbox.service.services import ALICE, Service


def address(service: Service) -> str:
    """The service's address with a token, as the client accepts it."""
    return service.url.replace("http://", f"http://any:{ALICE}@")


def test_scripts(service: Service) -> None:
    files = {"in.txt": base64.b64encode(b"in").decode()}
    code = "import sys\nprint(input(), open('in.txt').read())\nopen('out', 'w').write('o')\nsys.exit(len(sys.argv) - 1)"
    request = RunCodeRequest(code=code, language="python", stdin="line", files=files, fetch_files=["out"], run_timeout=5)
    for reply in (
        run_code(request, address(service), max_attempts=1),
        asyncio.run(run_code_async(request, address(service), max_attempts=1)),
    ):
        assert (reply.status, reply.run_result.status, reply.run_result.return_code) == (
            RunStatus.Success,
            CommandRunStatus.Finished,
            0,
        )
        assert (reply.run_result.stdout, reply.run_result.stderr) == ("line in\n", "")
        assert base64.b64decode(reply.files["out"]) == b"o"


def test_status_of_scripts(service: Service) -> None:
    mapping = SummaryMapping(RunFailed="failed", RunTimeout="late")
    codes = {"print(1)": RunStatus.Success, "1 / 0": "failed", "while True: pass": "late"}
    requests = [{"request": RunCodeRequest(code=code, language="python", run_timeout=1)} for code in codes]
    replies = run_concurrent(lambda request: run_code(request, address(service), max_attempts=1), kwargs=requests)
    assert [summary_run_code_result(reply, mapping) for reply in replies] == list(codes.values())


def test_notebooks(service: Service) -> None:
    request = RunJupyterRequest(
        cells=[
            "a = 123",
            "a",
            "print(a)",
            'import sys; _ = sys.stderr.write("message")',
            'raise RuntimeError("error")',
            "print(a)",
        ],
        files={"x": ""},
        fetch_files=["x"],
    )
    for reply in (
        run_jupyter(request, address(service), max_attempts=1),
        asyncio.run(run_jupyter_async(request, address(service), max_attempts=1)),
    ):
        assert (reply.status, reply.driver.status, reply.files) == (RunStatus.Success, CommandRunStatus.Finished, {"x": ""})
        assert [cell.stdout for cell in reply.cells] == ["", "", "123\n", "", "", "123\n"]
        assert reply.cells[1].display == [{"text/plain": "123"}]
        assert reply.cells[3].stderr == "message"
        assert [error["ename"] for error in reply.cells[4].error] == ["RuntimeError"]


def test_invalid_requests_raise_in_the_client(service: Service) -> None:
    with pytest.raises(Exception, match="'cpp'"):
        run_code(RunCodeRequest(code="1", language="cpp"), address(service), max_attempts=1)
    with pytest.raises(Exception, match=r"files: '\.\./x'"):
        run_jupyter(RunJupyterRequest(cells=[], files={"../x": ""}), address(service), max_attempts=1)
    with pytest.raises(Exception, match="code 401"):
        run_code(RunCodeRequest(code="1", language="python"), service.url, max_attempts=1)


def test_overload_status_is_one_that_the_client_repeats(tight: Service, narrow: httpx2.Client) -> None:
    for name in ("a", "b"):
        assert narrow.post("/v1/sessions", json={"id": name}).status_code == 201
    request = RunCodeRequest(code="print(1)", language="python", run_timeout=0, compile_timeout=0)
    with pytest.raises(Exception, match="code 504"):
        run_code(request, address(tight), max_attempts=1)
