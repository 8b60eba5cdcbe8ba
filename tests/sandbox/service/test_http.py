"""The service's own requests over real connections: sessions, tokens, repeated requests, limits, bad clients, shutdown."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import contextlib
import json
import signal
import socket
import time
import zlib
from pathlib import Path

import httpx2
import pytest
from click.testing import CliRunner

from aster.cli import main
from tests.sandbox.service.services import ALICE, BOB, Service, counter, eventually, level_line, run
from tests.sandbox.test_isolation import all_dead, descendants


def test_session_keeps_its_state_and_can_be_ended(http: httpx2.Client) -> None:
    opened = http.post("/v1/sessions", json={"seed": 7, "setup": "def ask(x): return 2 * x + 1"})
    assert opened.status_code == 201
    session = opened.json()["id"]
    assert run(http, session, "x = ask(20)\nx")["output"] == "41"
    failed = run(http, session, "1 / 0")
    assert failed["status"] == "error"
    assert str(failed["output"]).endswith("ZeroDivisionError: division by zero")
    assert run(http, session, "x")["output"] == "41"
    assert [entry["cells"] for entry in http.get("/v1/sessions").json()["sessions"]] == [3]
    assert http.delete(f"/v1/sessions/{session}").status_code == 204
    assert http.delete(f"/v1/sessions/{session}").status_code == 404
    assert http.post(f"/v1/sessions/{session}/run", json={"code": "1"}).status_code == 404


def test_the_same_seed_gives_the_same_numbers(http: httpx2.Client) -> None:
    sessions = [http.post("/v1/sessions", json={"seed": seed}).json()["id"] for seed in (3, 3, 4)]
    numbers = [run(http, session, "import random\nrandom.random()")["output"] for session in sessions]
    assert numbers[0] == numbers[1] != numbers[2]


def test_fork_has_the_state_and_is_independent(http: httpx2.Client) -> None:
    http.post("/v1/sessions", json={"id": "trunk"})
    run(http, "trunk", "x = [1]")
    assert http.post("/v1/sessions/trunk/fork", json={"id": "twig"}).status_code == 201
    assert http.post("/v1/sessions/trunk/fork", json={"id": "twig"}).status_code == 200
    run(http, "twig", "x.append(2)")
    assert run(http, "twig", "x")["output"] == "[1, 2]"
    assert run(http, "trunk", "x")["output"] == "[1]"
    assert http.post("/v1/sessions/nowhere/fork", json={}).status_code == 404
    http.delete("/v1/sessions/trunk")
    assert http.post("/v1/sessions/trunk/fork", json={"id": "twig"}).status_code == 200  # repeated after the parent ended
    assert http.post("/v1/sessions/trunk/fork", json={"id": "another"}).status_code == 404


def test_forks_and_sessions_can_be_reseeded(http: httpx2.Client) -> None:
    draw = "import random\nrandom.random()"
    http.post("/v1/sessions", json={"id": "trunk", "seed": 3})
    forks = {"like": {}, "one": {"seed": 1}, "two": {"seed": 2}, "again": {"seed": 1}}
    for name, body in forks.items():
        assert http.post("/v1/sessions/trunk/fork", json={"id": name, **body}).status_code == 201
    assert http.post("/v1/sessions/trunk/fork", json={"id": "one", "seed": 2}).status_code == 409
    drawn = {name: run(http, name, draw)["output"] for name in ("trunk", *forks)}
    assert drawn["like"] == drawn["trunk"]
    assert drawn["one"] == drawn["again"]
    assert len(set(drawn.values())) == 3
    for _ in range(2):  # the second request repeats the first
        assert http.post("/v1/sessions/trunk/seed", json={"seed": 1, "request_id": "r"}).status_code == 204
        first = run(http, "trunk", draw, "d")["output"]
    assert first == drawn["one"]
    assert run(http, "trunk", draw)["output"] == run(http, "one", draw)["output"]
    assert {entry["id"]: entry["cells"] for entry in http.get("/v1/sessions").json()["sessions"]}["trunk"] == 3


def test_without_a_body_there_are_defaults(http: httpx2.Client) -> None:
    opened = http.post("/v1/sessions")
    assert opened.status_code == 201
    name = opened.json()["id"]
    forked = http.post(f"/v1/sessions/{name}/fork")
    assert forked.status_code == 201
    http.post("/v1/sessions", json={"id": "zero", "seed": 0})
    draw = "import random\nrandom.random()"
    assert len({run(http, session, draw)["output"] for session in (name, forked.json()["id"], "zero")}) == 1


def test_session_that_is_still_opening_can_be_forked_and_closed(http: httpx2.Client) -> None:
    slow = {"setup": "import time\ntime.sleep(0.4)\nx = 5"}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        opening = [pool.submit(http.post, "/v1/sessions", json={"id": name, **slow}) for name in ("early", "never")]
        time.sleep(0.2)
        assert http.post("/v1/sessions/early/fork", json={"id": "child"}).status_code == 201
        assert http.delete("/v1/sessions/never").status_code == 204
        assert [future.result().status_code for future in opening] == [201, 201]
    assert run(http, "child", "x")["output"] == "5"
    assert {entry["id"] for entry in http.get("/v1/sessions").json()["sessions"]} == {"early", "child"}


def test_lone_surrogate_in_code_is_accepted(http: httpx2.Client) -> None:
    http.post("/v1/sessions", json={"id": "odd"})
    headers = {"Content-Type": "application/json"}
    response = http.post("/v1/sessions/odd/run", content=b'{"code": "x = \'\\ud800\'\\nlen(x)"}', headers=headers)
    assert response.status_code == 200
    assert response.json()["status"] in ("ok", "error")
    assert run(http, "odd", "1 + 1")["output"] == "2"


@pytest.mark.parametrize("path", ["/v1/sessions", "/metrics", "/v1/settings", "/nowhere"])
@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer wrong-wrong-wrong"}, {"Authorization": f"Bearer {ALICE}x"}, {"Authorization": "Basic ?"}],
)
def test_requests_without_a_valid_token_are_refused(service: Service, path: str, headers: dict[str, str]) -> None:
    with service.client() as stranger:
        response = stranger.get(path, headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert stranger.post("/run_code", json={"code": "1"}, headers=headers).status_code == 401


def test_health_and_docs_need_no_token(service: Service) -> None:
    with service.client() as stranger:
        assert stranger.get("/health").json()["status"] == "ok"
        assert "swagger" in stranger.get("/docs").text
        assert "/v1/sessions/{session_id}/run" in stranger.get("/openapi.json").json()["paths"]


def test_token_may_be_in_the_url(service: Service) -> None:
    secret = base64.b64encode(f"any:{ALICE}".encode()).decode()
    with service.client() as client:
        assert client.get("/v1/sessions", headers={"Authorization": f"Basic {secret}"}).status_code == 200


def test_client_does_not_see_other_clients_sessions(service: Service, http: httpx2.Client) -> None:
    http.post("/v1/sessions", json={"id": "mine"})
    run(http, "mine", "x = 1")
    with service.client(BOB) as other:
        assert other.get("/v1/sessions").json() == {"sessions": []}
        assert other.post("/v1/sessions/mine/run", json={"code": "x"}).status_code == 404
        assert other.delete("/v1/sessions/mine").status_code == 404
        assert other.post("/v1/sessions", json={"id": "mine"}).status_code == 201, "ids are each client's own"
        assert other.delete("/v1/sessions/mine").status_code == 204
    assert run(http, "mine", "x")["output"] == "1"


def test_request_sent_twice_runs_once(http: httpx2.Client) -> None:
    http.post("/v1/sessions", json={"id": "once"})
    run(http, "once", "n = 0")
    first = run(http, "once", "n += 1\nn", "r1")
    assert run(http, "once", "n += 1\nn", "r1") == first
    assert first["output"] == "1"
    assert run(http, "once", "n")["output"] == "1"
    other = http.post("/v1/sessions/once/run", json={"code": "n += 2", "request_id": "r1"})
    assert other.status_code == 409


def test_simultaneous_identical_requests_run_once(http: httpx2.Client) -> None:
    http.post("/v1/sessions", json={"id": "twice"})
    run(http, "twice", "n = 0")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        cell = "import time\ntime.sleep(0.3)\nn += 1\nn"
        replies = list(pool.map(lambda _: run(http, "twice", cell, "same"), range(4)))
    assert [reply["output"] for reply in replies] == ["1"] * 4


def test_old_request_is_not_run_again(http: httpx2.Client) -> None:
    http.post("/v1/sessions", json={"id": "old"})
    run(http, "old", "n = 0")
    for number in range(20):
        run(http, "old", "n += 1", f"r{number}")
    assert http.post("/v1/sessions/old/run", json={"code": "n += 1", "request_id": "r0"}).status_code == 410
    assert http.post("/v1/sessions/old/run", json={"code": "n += 1", "request_id": "r19"}).status_code == 200
    assert run(http, "old", "n")["output"] == "20"


def test_opening_twice_with_one_id_opens_once(http: httpx2.Client) -> None:
    assert http.post("/v1/sessions", json={"id": "same", "seed": 1}).status_code == 201
    run(http, "same", "x = 5")
    assert http.post("/v1/sessions", json={"id": "same", "seed": 1}).status_code == 200
    assert run(http, "same", "x")["output"] == "5"
    assert http.post("/v1/sessions", json={"id": "same", "seed": 2}).status_code == 409


def test_setup_that_raises_is_reported(http: httpx2.Client) -> None:
    response = http.post("/v1/sessions", json={"id": "broken", "setup": "1 / 0"})
    assert response.status_code == 424
    assert "ZeroDivisionError" in response.json()["detail"]
    assert http.get("/v1/sessions").json() == {"sessions": []}
    assert http.post("/v1/sessions", json={"id": "broken"}).status_code == 201


@pytest.mark.parametrize(
    ("content", "status", "detail"),
    [
        (b"no json", 422, "JSON"),
        (b'{"cod": "1"}', 422, "code"),
        (b'{"code": 1}', 422, "body.code: "),
        (b'{"code": "1", "request_id": "a b"}', 422, "request_id"),
        (b"[" * 100_000, 400, "body"),
        (b'{"code": "1", "\\ud800": 2}', 422, "unicode"),
    ],
)
def test_invalid_bodies_are_refused(http: httpx2.Client, content: bytes, status: int, detail: str) -> None:
    http.post("/v1/sessions", json={"id": "fit"})
    headers = {"Content-Type": "application/json"}
    response = http.post("/v1/sessions/fit/run", content=content, headers=headers)
    assert response.status_code == status
    assert detail in response.json()["detail"]


@pytest.mark.parametrize("path", ["/v1/sessions", "/v1/sessions/s/run", "/run_code", "/run_stateful_code", "/run_jupyter"])
@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "text/plain"])
def test_missing_json_header_is_reported(http: httpx2.Client, path: str, kind: str | None) -> None:
    http.post("/v1/sessions", json={"id": "s"})
    response = http.post(path, content=b'{"code": "1"}', headers={} if kind is None else {"Content-Type": kind})
    assert response.status_code == 422
    assert "Content-Type: application/json" in response.json()["detail"]
    response = http.post(path, content=b'{"code": 1}', headers={"Content-Type": "application/json; charset=utf-8"})
    assert response.status_code == 422
    assert "Content-Type" not in response.json()["detail"]


def test_metrics_count_what_happens(http: httpx2.Client) -> None:
    before = {
        name: counter(http, name) for name in ('aster_sandbox_cells_total{status="error"}', "aster_sandbox_repeated_total")
    }
    http.post("/v1/sessions", json={"id": "counted"})
    run(http, "counted", "1 / 0", "r")
    run(http, "counted", "1 / 0", "r")
    for name, value in before.items():
        assert counter(http, name) == value + 1
    assert counter(http, 'aster_sandbox_sessions{client="client-1"}') == 1
    assert counter(http, 'aster_sandbox_requests_total{route="/v1/sessions/{session_id}/run",status="200"}') > 0
    assert ALICE not in http.get("/metrics").text


def test_limits_of_sessions_per_client_and_in_all(tight: Service, narrow: httpx2.Client) -> None:
    with tight.client(BOB) as bob:
        for name in ("a", "b"):
            assert narrow.post("/v1/sessions", json={"id": name}).status_code == 201
        refused = narrow.post("/v1/sessions", json={"id": "c"})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 0
        assert bob.post("/v1/sessions", json={"id": "a"}).status_code == 201
        full = bob.post("/v1/sessions", json={"id": "b"})
        assert full.status_code == 503
        assert int(full.headers["retry-after"]) > 0
        assert narrow.delete("/v1/sessions/a").status_code == 204
        assert bob.post("/v1/sessions", json={"id": "b"}).status_code == 201
        for name in ("a", "b"):
            bob.delete(f"/v1/sessions/{name}")
    assert narrow.post("/v1/sessions", json={"id": "c"}).status_code == 201


def test_cells_beyond_the_queue_are_refused_and_do_not_run(narrow: httpx2.Client) -> None:
    for name in ("a", "b"):
        narrow.post("/v1/sessions", json={"id": name})
    slow = {"code": "import time\ntime.sleep(0.8)\nx = 1"}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        running = pool.submit(narrow.post, "/v1/sessions/a/run", json=slow)
        assert eventually(lambda: counter(narrow, "aster_sandbox_cells_running") == 1)
        waiting = pool.submit(narrow.post, "/v1/sessions/b/run", json=slow)
        refused = None
        for _ in range(50):
            time.sleep(0.01)
            refused = narrow.post("/v1/sessions/b/run", json={"code": "y = 1", "request_id": "again"})
            if refused.status_code == 429:
                break
        assert refused is not None
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 0
        assert [future.result().status_code for future in (running, waiting)] == [200, 200]
    # A refused request is not kept as a reply: sent again, it runs.
    assert run(narrow, "b", "y = 1", "again")["status"] == "ok"


def test_idle_session_is_closed() -> None:
    service = Service("--idle-seconds", "2", "sandbox.cell_seconds=20")
    with service.client() as http:
        http.post("/v1/sessions", json={"id": "idle"})
        # A session is not idle while its cell runs, however long.
        assert run(http, "idle", "import time\ntime.sleep(2.6)\n'done'")["output"] == "'done'"
        assert eventually(lambda: http.get("/v1/sessions").json() == {"sessions": []})
        assert http.post("/v1/sessions/idle/run", json={"code": "x"}).status_code == 404
        # The session leaves the list first and is counted after it has ended.
        assert eventually(lambda: counter(http, 'aster_sandbox_sessions_closed_total{why="idle"}') == 1)
    service.stop()


def _raw(service: Service, head: str, token: str = ALICE) -> socket.socket:
    """A connection on which the head of a request has been sent."""
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=60)
    lines = [head, "Host: x", f"Authorization: Bearer {token}", "Content-Type: application/json"]
    connection.sendall("\r\n".join(lines).encode())
    return connection


def _status(connection: socket.socket) -> int:
    with connection.makefile("rb") as reader:
        return int(reader.readline().split()[1])


@pytest.mark.parametrize("token", [ALICE, "wrong-wrong-wrong-wrong"])
@pytest.mark.parametrize("chunked", [False, True])
def test_body_of_100_mb_is_refused_and_not_kept_in_memory(tight: Service, chunked: bool, token: str) -> None:
    before = tight.peak_mb()
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {100 << 20}"
    with _raw(tight, f"POST /v1/sessions HTTP/1.1\r\n{length}", token) as connection:
        connection.sendall(b"\r\n\r\n")
        piece = b"x" * (1 << 20)
        for _ in range(100):
            connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            connection.sendall(b"0\r\n\r\n")
        assert _status(connection) == (413 if token == ALICE else 401)
    assert tight.peak_mb() < before + 20


def test_expect_continue_is_refused_before_the_body(tight: Service) -> None:
    head = f"POST /v1/sessions HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: {100 << 20}"
    with _raw(tight, head) as connection:
        connection.sendall(b"\r\n\r\n")
        assert _status(connection) == 413


def test_reply_is_kept_for_a_client_that_disconnected(service: Service, http: httpx2.Client) -> None:
    http.post("/v1/sessions", json={"id": "left"})
    run(http, "left", "n = 0")
    body = json.dumps({"code": "import time\ntime.sleep(0.4)\nn += 1\nn", "request_id": "left-1"}).encode()
    connection = _raw(service, f"POST /v1/sessions/left/run HTTP/1.1\r\nContent-Length: {len(body)}")
    connection.sendall(b"\r\n\r\n" + body)
    assert eventually(lambda: counter(http, "aster_sandbox_cells_running") == 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    connection.close()  # sends a reset
    assert run(http, "left", "import time\ntime.sleep(0.4)\nn += 1\nn", "left-1")["output"] == "1"
    assert run(http, "left", "n")["output"] == "1"


@pytest.mark.parametrize("sent", [b"", b'{"seed": 1'])
def test_incomplete_request_does_nothing(service: Service, http: httpx2.Client, sent: bytes) -> None:
    http.post("/v1/sessions", json={"id": "whole"})
    http.put("/v1/sessions/whole/files/f", content=b"whole", headers={"Content-Type": "application/octet-stream"})
    before = counter(http, 'aster_sandbox_refused_total{status="499"}')
    for request in ("POST /v1/sessions", "POST /v1/sessions/whole/fork", "PUT /v1/sessions/whole/files/f"):
        with _raw(service, f"{request} HTTP/1.1\r\nContent-Length: 100") as connection:
            connection.sendall(b"\r\n\r\n" + sent)
    assert eventually(lambda: counter(http, 'aster_sandbox_refused_total{status="499"}') == before + 3)
    assert [session["id"] for session in http.get("/v1/sessions").json()["sessions"]] == ["whole"]
    assert http.get("/v1/sessions/whole/files/f").content == b"whole"


def test_100_clients_at_once_while_some_disconnect(service: Service, http: httpx2.Client) -> None:
    """Each of 80 clients counts its cells in its own session, while 20 others disconnect in the middle of requests."""

    async def steady(client: httpx2.AsyncClient, name: str) -> list[str]:
        await client.post("/v1/sessions", json={"id": name, "setup": "n = 0"})
        replies = [await client.post(f"/v1/sessions/{name}/run", json={"code": "n += 1\nn"}) for _ in range(5)]
        await client.delete(f"/v1/sessions/{name}")
        return [reply.json()["output"] for reply in replies]

    async def fickle(name: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        body = json.dumps({"id": name, "setup": "import time; time.sleep(0.05)"}).encode()
        head = f"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALICE}\r\nContent-Length: {len(body)}\r\n\r\n"
        whole = head.encode() + body
        writer.write(whole[: zlib.crc32(name.encode()) % len(whole)])
        await writer.drain()
        writer.transport.abort()
        del reader

    async def all_of_them() -> list[list[str]]:
        limits = httpx2.Limits(max_connections=None)
        headers = {"Authorization": f"Bearer {ALICE}"}
        async with httpx2.AsyncClient(
            base_url=service.url, headers=headers, limits=limits, timeout=60, trust_env=False
        ) as client:
            gone = asyncio.gather(*(fickle(f"gone-{number}") for number in range(20)))
            counts = await asyncio.gather(*(steady(client, f"steady-{number}") for number in range(80)))
            await gone
            return counts

    assert asyncio.run(all_of_them()) == [["1", "2", "3", "4", "5"]] * 80
    assert http.get("/health").json()["status"] == "ok"


def test_slow_readers_and_writers_do_not_block_others(service: Service, http: httpx2.Client) -> None:
    """Clients that send half a request, or send many and read no reply, do not slow down others."""
    http.post("/v1/sessions", json={"id": "big"})
    run(http, "big", "text = 'x' * 1900")
    body = json.dumps({"code": "print(text)"}).encode()
    request = (
        f"POST /v1/sessions/big/run HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALICE}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    connections = []
    for number in range(40):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(0.05)
        connection.connect(("127.0.0.1", service.port))
        # Half of them stop in the middle of a request; the others send many and read nothing until the service stops reading.
        with contextlib.suppress(TimeoutError):
            connection.sendall(request[: len(request) // 2] if number % 2 else request * 50)
        connections.append(connection)
    http.post("/v1/sessions", json={"id": "quick"})
    for number in range(20):
        assert run(http, "quick", f"{number} + 1")["output"] == str(number + 1)
    for connection in connections:
        connection.close()


def test_sigterm_lets_running_cells_end_and_leaves_no_process() -> None:
    service = Service("sandbox.cell_seconds=20")
    with service.client() as http, concurrent.futures.ThreadPoolExecutor(1) as pool:
        http.post("/v1/sessions", json={"id": "last"})
        run(http, "last", "import subprocess\nsleeper = subprocess.Popen(['sleep', '600'])")
        below = descendants(service.process.pid)
        assert len(below) >= 3  # the zygote, the session, and the process that it started
        cell = pool.submit(run, http, "last", "import time\ntime.sleep(1)\n'done'")
        assert eventually(lambda: counter(http, "aster_sandbox_cells_running") == 1)
        status, errors = service.stop()
        assert cell.result()["output"] == "'done'"
    assert (status, errors) == (0, level_line())
    assert eventually(lambda: all_dead(below))


def test_sigint_ends_the_service() -> None:
    service = Service()
    service.process.send_signal(signal.SIGINT)
    assert service.stop() == (0, level_line())


def test_user_errors_are_one_line(service: Service, tmp_path: Path) -> None:
    (tmp_path / "short").write_text("abc\n")
    (tmp_path / "double").write_text(f"a {ALICE}\na {BOB}\n")
    (tmp_path / "empty").write_text("# none\n")
    for arguments, message in [
        (["--port", str(service.port)], f"127.0.0.1:{service.port}: Address already in use"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0: "),
        (["--host", "no-such-host.invalid"], "--host no-such-host.invalid"),
        (["--token-file", str(tmp_path / "none")], f"{tmp_path / 'none'}: "),
        (["--token-file", str(tmp_path / "short")], f"{tmp_path / 'short'}: entry 1: "),
        (["--token-file", str(tmp_path / "double")], f"{tmp_path / 'double'}: entry 2: "),
        (["--token-file", str(tmp_path / "empty")], f"{tmp_path / 'empty'}: "),
        (["sandbox.sesions=3"], "'sandbox.sesions'"),
        (["sandbox.output_characters=3"], "sandbox.output_characters"),
        (["sandbox.addresses=['http://x']"], "sandbox.addresses"),
    ]:
        if arguments[0] == "--host" and arguments[1].startswith("no"):
            arguments = [*arguments, "--no-tokens"]
        result = CliRunner().invoke(main, ["sandbox", "serve", *arguments])
        assert (result.exit_code, result.stdout) == (2, "")
        assert len(result.stderr.splitlines()) == 1
        assert message in result.stderr
