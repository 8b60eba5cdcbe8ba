"""The wheel, without the clone and without any extra: it runs the lab from an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = (
    *("beside=[]", "synthesize.problems=24", "curate.dense_calls=1", "problems.levels=[1,2]"),
    *("sft.stages=[{trained_tokens: 500, batch: 8}]", "rl.prompts=2", "rl.samples=2", "rl.minibatches=1"),
    *("rl.stages=[{steps: 1, limits: {context_tokens: 256, turn_tokens: 64, tool_calls: 2, turns: 3}}]",),
    *("evaluate.problems=2", "evaluate.k=1", "evaluate.limits={context_tokens: 256, turn_tokens: 64, tool_calls: 2, turns: 3}"),
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as a wheel would install it, in a folder of its own that hides the packages of all extras."""
    pytest.importorskip("hatchling", reason="NOT RUN: the wheel; make install sets up what builds it")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    installed = folder / "installed"
    zipfile.ZipFile(built).extractall(installed)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].values()
    names = {re.split(r"[^A-Za-z0-9_-]", line)[0].replace("-", "_") for lines in extras for line in lines} | {"IPython"}
    # In every process that is started with this folder on its path; a module that is None cannot be imported.
    (installed / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({sorted(names)}))\n")
    return installed


def in_empty_folder(wheel: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(wheel), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=folder, env=environment, check=False)


def test_the_lab_runs_wholly_on_a_plain_install(wheel: Path, tmp_path: Path) -> None:
    check = "import aster, sys; print(aster.__file__); import pyarrow"
    found = in_empty_folder(wheel, tmp_path, "-c", check)
    assert found.stdout.strip() == str(wheel / "aster" / "__init__.py")
    assert "ModuleNotFoundError" in found.stderr
    ended = in_empty_folder(wheel, tmp_path, "-m", "aster", "run", "lab", *SMALL)
    assert ended.returncode == 0, ended.stderr
    assert "after RL" in ended.stdout
    assert "<svg" in (tmp_path / "runs" / "lab-aster-s1" / "report.html").read_text()


def test_a_recipe_written_out_is_accepted(wheel: Path, tmp_path: Path) -> None:
    written = in_empty_folder(wheel, tmp_path, "-m", "aster", "recipe", "lab", "--yaml", "rl.prompts=3")
    assert written.returncode == 0, written.stderr
    (tmp_path / "my.yaml").write_text(written.stdout)
    shown = in_empty_folder(wheel, tmp_path, "-m", "aster", "recipe", "my.yaml")
    assert "rl.prompts = 3 " in shown.stdout


def test_doctor_needs_no_extra(wheel: Path, tmp_path: Path) -> None:
    found = in_empty_folder(wheel, tmp_path, "-m", "aster", "doctor")
    assert found.returncode == 0, found.stderr
    assert "isolation level" in found.stdout.lower()
