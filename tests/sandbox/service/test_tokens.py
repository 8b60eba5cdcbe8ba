"""The service's tokens: where they come from, and that cells cannot read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sandbox.conftest import levels_here
from tests.sandbox.service.services import ALICE, BOB, Service, counter, level_line, run


@pytest.mark.parametrize("level", [level for level in levels_here() if level != "rlimits"])
def test_cells_cannot_read_the_tokens(level: str, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"{ALICE}\n")
    code = f"""
import glob
for name in [{str(file)!r}, *glob.glob("/proc/*/environ"), *glob.glob("/proc/*/cmdline")]:
    try:
        print(len(open(name).read()))
    except OSError:
        pass
"""
    in_file, in_variable = Service("--token-file", str(file), isolation=level), Service(tokens=ALICE, isolation=level)
    for service in (in_file, in_variable):
        with service.client(ALICE) as http:
            http.post("/v1/sessions", json={"id": "thief"})
            assert run(http, "thief", code)["output"] == "[no output]"
        assert service.stop()[0] == 0


def test_tokens_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"# clients\n\nalice {ALICE}\n{BOB}\n")
    service = Service("--token-file", str(tmp_path / "tokens"))
    with service.client(ALICE) as alice, service.client(BOB) as bob, service.client() as stranger:
        assert alice.post("/v1/sessions", json={}).status_code == 201
        assert bob.get("/v1/sessions").status_code == 200
        assert stranger.get("/v1/sessions").status_code == 401
        assert counter(bob, 'aster_sandbox_sessions{client="alice"}') == 1
        assert counter(bob, 'aster_sandbox_sessions{client="client-2"}') == 0
    assert service.stop() == (0, level_line())
