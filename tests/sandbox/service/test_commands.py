"""The command line ``python -m aster_sandbox``."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from aster.cli import main as aster
from aster_sandbox import describe_machine
from aster_sandbox.commands import main
from tests.sandbox.conftest import ISOLATION
from tests.sandbox.service.services import ALICE, Listening, level_line, run

COMMAND = [sys.executable, "-m", "aster_sandbox"]
FAST = ["preload=[]", f"isolation={ISOLATION}"]


def test_run_command() -> None:
    command = [*COMMAND, "run", *FAST, "sandbox.output_characters=10"]
    done = subprocess.run(command, input="'a' * 30\n", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, level_line())
    assert "characters cut" in done.stdout


def test_serve_command() -> None:
    service = Listening([*COMMAND, "serve", "--port", "0", *FAST, "cell_seconds=3"], ASTER_SANDBOX_TOKENS=ALICE)
    with service.client(ALICE) as http:
        assert http.get("/v1/settings").json()["cell_seconds"] == 3.0
        http.post("/v1/sessions", json={"id": "s"})
        assert run(http, "s", "6 * 7")["output"] == "42"
    assert service.stop() == (0, level_line())


def test_doctor_command() -> None:
    assert CliRunner().invoke(main, ["doctor"]).stdout == f"{describe_machine()}\n"


def test_ctrl_c_during_the_start_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "setup.py").write_text("import time\ntime.sleep(20)")
    command = [*COMMAND, "run", *FAST, "--setup", str(tmp_path / "setup.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == level_line()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "aster_sandbox: interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "cell_second=5"], "'cell_seconds'"),
        (["run", "recipe.yaml"], "'recipe.yaml': "),
        (["run", "cell_seconds=0"], "sandbox.cell_seconds: "),
        (["run", "cell_seconds="], "sandbox.cell_seconds: "),
        (["run", "preload=["], "'preload=[': "),
        (["run", "preload=[no_such_package]"], "sandbox.preload: 'no_such_package'"),
        (["run", "mounts=[/nowhere/at/all]"], "sandbox.mounts: '/nowhere/at/all'"),
        (["run", "--setup", "nowhere.py"], "--setup nowhere.py: "),
        (["serve", "addresses=[http://x]"], "sandbox.addresses"),
        (["serve", "--host", "0.0.0.0"], "--host 0.0.0.0: "),
        (["serve", "output_characters=3"], "sandbox.output_characters"),
        (["serve", "--token-file", "nowhere"], "nowhere: "),
    ],
)
def test_user_errors_are_one_line(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASTER_SANDBOX_TOKENS", raising=False)
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("aster_sandbox: error: ")
    assert message in result.stderr


def test_nan_seconds_are_refused() -> None:
    result = CliRunner().invoke(main, ["serve", "--idle-seconds", "nan"])
    assert (result.exit_code, "--idle-seconds" in result.stderr) == (2, True)


def test_both_command_lines_have_the_same_commands_and_options() -> None:
    sandbox = aster.commands["sandbox"]
    assert isinstance(sandbox, click.Group)
    for name in ("serve", "run"):
        options, others = (
            [(each.name, each.opts, each.default) for each in group.commands[name].params] for group in (main, sandbox)
        )
        assert options == others


def test_help_imports_no_large_packages() -> None:
    heavy = "{'asyncio', 'pydantic', 'httpx2', 'yaml', 'uvicorn', 'numpy'}"
    code = f"""
import sys
from aster_sandbox.commands import main
main(["serve", "--help"], standalone_mode=False)
print({heavy} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: ")
    assert done.stdout.endswith("set()\n")
