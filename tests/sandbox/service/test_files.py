"""Upload and download of a session's files over HTTP, and its environment variables."""

from __future__ import annotations

import httpx2
import pytest

from tests.sandbox.service.services import BOB, Service, run


@pytest.fixture
def session(http: httpx2.Client) -> str:
    """The path of an open session of Alice."""
    http.post("/v1/sessions", json={"id": "s"})
    return "/v1/sessions/s"


def test_file_round_trip_is_exact(http: httpx2.Client, session: str) -> None:
    content = bytes(range(256)) * 9000  # longer than one reply of a runner
    assert http.put(f"{session}/files/data/ü b.bin", content=content).status_code == 204
    assert run(http, "s", "len(open('data/ü b.bin', 'rb').read())")["output"] == str(len(content))
    reply = http.get(f"{session}/files/data/ü b.bin")
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/octet-stream")
    assert reply.content == content
    assert http.put(f"{session}/files/data/ü b.bin", content=b"").status_code == 204
    assert http.get(f"{session}/files/data/ü b.bin").content == b""


def test_files_of_cells_can_be_downloaded_and_are_in_forks(http: httpx2.Client, session: str) -> None:
    http.put(f"{session}/files/in", content=b"abc")
    run(http, "s", "open('out', 'w').write(open('in').read().upper())")
    http.post(f"{session}/fork", json={"id": "twin"})
    http.put(f"{session}/files/in", content=b"xyz")
    assert [http.get(f"/v1/sessions/{name}/files/out").text for name in ("s", "twin")] == ["ABC", "ABC"]
    assert http.get("/v1/sessions/twin/files/in").text == "abc"


def test_absolute_paths(http: httpx2.Client, session: str) -> None:
    place = str(run(http, "s", "import os\nprint(os.getcwd())")["output"])
    for path in (f"{place}/one", f"{place.replace('/', '%2F')}%2Ftwo"):
        assert http.put(f"{session}/files/{path}", content=b"x").status_code == 204
    assert run(http, "s", "sorted(os.listdir())")["output"] == "['one', 'two']"
    assert http.get(f"{session}/files/{place}/two").content == b"x"


def test_file_sent_twice_is_written_once(http: httpx2.Client, session: str) -> None:
    once = {"request_id": "r1"}
    assert http.put(f"{session}/files/f", content=b"1", params=once).status_code == 204
    run(http, "s", "open('f', 'w').write('changed by a cell')")
    assert http.put(f"{session}/files/f", content=b"1", params=once).status_code == 204
    assert http.get(f"{session}/files/f").text == "changed by a cell"
    for path, content in (("f", b"2"), ("g", b"1")):
        assert http.put(f"{session}/files/{path}", content=content, params=once).status_code == 409
    # The ids of runs and uploads share one namespace.
    assert http.post(f"{session}/run", json={"code": "1", "request_id": "r1"}).status_code == 409


def test_uploaded_file_is_restored_after_a_crash(http: httpx2.Client, session: str) -> None:
    http.put(f"{session}/files/f", content=b"1")
    http.put(f"{session}/files/f", content=b"12")
    run(http, "s", "n = len(open('f').read())")
    run(http, "s", "import os\nos._exit(3)")
    assert run(http, "s", "n, open('f').read()")["output"] == "(2, '12')"


@pytest.mark.parametrize("path", ["none", "none/none", "", "d", "%00", "a%00b", "x" * 300, "%2Fproc%2Fself%2Fmem", "%FF"])
def test_download_of_no_file_is_a_one_line_error(http: httpx2.Client, session: str, path: str) -> None:
    run(http, "s", "import os\nos.mkdir('d')")
    reply = http.get(f"{session}/files/{path}")
    assert reply.status_code == (404 if path else 422)
    assert reply.json().get("code") == ("no_file" if path else None)
    assert len(reply.json()["detail"].splitlines()) == 1


@pytest.mark.parametrize("path", ["", "d", "file/x", "a%00b", "x" * 300, "%2Fetc%2Fx", "%2Fproc%2Fx"])
def test_upload_to_an_unwritable_path_is_a_one_line_error(http: httpx2.Client, session: str, path: str) -> None:
    run(http, "s", "import os\nos.mkdir('d')\nopen('file', 'w').close()")
    reply = http.put(f"{session}/files/{path}", content=b"x", params={"request_id": "again"})
    assert reply.status_code == 422
    assert len(reply.json()["detail"].splitlines()) == 1
    # The upload failed, so its id can be used again.
    assert http.put(f"{session}/files/ok", content=b"x", params={"request_id": "again"}).status_code == 204


def test_files_of_other_clients_are_not_accessible(service: Service, http: httpx2.Client, session: str) -> None:
    http.put(f"{session}/files/f", content=b"x")
    with service.client(BOB) as other, service.client() as stranger:
        for reply in (other.get(f"{session}/files/f"), other.put(f"{session}/files/f", content=b"y")):
            assert (reply.status_code, reply.json()["code"]) == (404, "no_session")
        assert stranger.get(f"{session}/files/f").status_code == 401
    assert http.get(f"{session}/files/f").content == b"x"


def test_file_size_is_limited_by_body_mb(narrow: httpx2.Client) -> None:
    narrow.post("/v1/sessions", json={"id": "s"})
    whole = bytes(1 << 20)
    assert narrow.put("/v1/sessions/s/files/f", content=whole).status_code == 204
    assert narrow.get("/v1/sessions/s/files/f").content == whole
    assert narrow.put("/v1/sessions/s/files/f", content=whole + b"x").status_code == 413
    run(narrow, "s", "open('f', 'ab').write(b'x')")
    reply = narrow.get("/v1/sessions/s/files/f")
    assert reply.status_code == 413
    assert reply.json()["detail"].startswith("f: ")
    assert "1048576" in reply.json()["detail"]


def test_session_has_its_environment(http: httpx2.Client) -> None:
    environment = {"GREETING": "hällo\n=", "PYTHONHASHSEED": "1", "EMPTY": ""}
    assert http.post("/v1/sessions", json={"id": "e", "environment": environment}).status_code == 201
    seen = "import os\n[os.environ.get(name) for name in ('GREETING', 'EMPTY')]"
    first = run(http, "e", seen)["output"]
    assert first == "['hällo\\n=', '']"
    assert run(http, "e", "import subprocess\nsubprocess.run('echo $GREETING', shell=True)\n0")["output"] == "hällo =\n0"
    run(http, "e", "os._exit(1)")
    assert run(http, "e", seen)["output"] == first
    http.post("/v1/sessions/e/fork", json={"id": "f"})
    assert run(http, "f", seen)["output"] == first


def test_opening_twice_with_different_environments_is_refused(http: httpx2.Client) -> None:
    body = {"id": "e", "environment": {"A": "1", "B": "2"}}
    assert http.post("/v1/sessions", json=body).status_code == 201
    assert http.post("/v1/sessions", json={"id": "e", "environment": {"B": "2", "A": "1"}}).status_code == 200
    for other in ({"A": "1"}, {"A": "1", "B": "3"}, {}):
        assert http.post("/v1/sessions", json={"id": "e", "environment": other}).status_code == 409


@pytest.mark.parametrize("environment", [{"A=B": "1"}, {"": "1"}, {"A": "\0"}, {"A\0": ""}, {"A": 1}, {"A": None}, ["A"], "A"])
def test_invalid_environment_is_a_one_line_error(http: httpx2.Client, environment: object) -> None:
    reply = http.post("/v1/sessions", json={"environment": environment})
    assert reply.status_code == 422
    assert reply.json()["detail"].startswith("body.environment")
    assert len(reply.json()["detail"].splitlines()) == 1
    assert http.get("/v1/sessions").json() == {"sessions": []}
