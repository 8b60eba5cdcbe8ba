"""Missing packages: named in one line, with the command that installs them in the versions of pyproject.toml."""

from __future__ import annotations

import importlib.metadata
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from aster.cli import main
from aster.extras import install_command, packages_for
from aster_sandbox.commands import SERVICE_PACKAGES

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def test_versions_are_those_of_pyproject() -> None:
    assert install_command("peft", "rich") == f"pip install '{EXTRAS['lora'][0]}' '{_core('rich')}'"
    assert install_command("Py3LangID") == f"pip install '{EXTRAS['filters'][0]}'"
    assert install_command("math_verify").startswith("pip install 'math-verify[antlr4")
    assert install_command("not-ours") == "pip install not-ours"


def test_a_source_folder_that_was_never_installed_names_packages_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_there(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", not_there)
    assert install_command("peft") == "pip install peft"
    assert packages_for("peft") == []


def test_what_is_missing_beside_a_package_is_named_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aster.extras._is_installed", lambda name: name == "rapidfuzz")
    assert packages_for("rensa") == ["rensa", "py3langid"]
    assert packages_for("pyarrow.parquet") == ["pyarrow"]
    assert packages_for("numpy") == ["numpy"]  # every plain install needs it: it has no extra whose packages it comes with
    assert packages_for("aster.nowhere") == []
    assert packages_for(None) == []


def test_a_command_that_needs_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = CliRunner().invoke(main, ["data", "problems", str(tmp_path / "p.parquet"), "--out", str(tmp_path / "o.jsonl")])
    command = f"pip install '{EXTRAS['parquet'][0]}'"
    assert result.exit_code == 2
    assert result.stderr == f"aster: error: this needs the package pyarrow, which is not installed; install it ({command})\n"


def test_a_module_that_is_no_package_of_ours_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aster.config.describe", None)
    assert isinstance(CliRunner().invoke(main, ["recipe"]).exception, ModuleNotFoundError)


def test_the_sandbox_names_the_packages_of_its_service() -> None:
    # It imports nothing of aster, so it has the names, without versions.
    assert [name.partition(">")[0] for name in EXTRAS["serve"]] == list(SERVICE_PACKAGES)


def _core(name: str) -> str:
    return next(line for line in PROJECT["dependencies"] if line.startswith(name))
