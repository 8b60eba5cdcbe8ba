"""The command line: its frozen surface, its speed's cause (what it imports), and one-line errors."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from aster import __version__
from aster.cli import main
from tests.refusals import printed, require

STAGE = ["RECIPE", "[FIELD=VALUE ...]", "--run"]
SURFACE = {
    "run": STAGE,
    "synthesize": STAGE,
    "curate": STAGE,
    "sft": STAGE,
    "rl": STAGE,
    "evaluate": [
        "[RECIPE] [FIELD=VALUE ...]",
        "--run",
        "--policy",
        "--benchmark",
        "--k",
        "--budget",
        "--max-calls",
        "--temperature",
        "--top-p",
        "--no-tools",
        "--out",
        "--seed",
        "--problems",
        "--data",
        "--model",
        "--tokenizer",
        "--checkpoint",
        "--turn-budget",
        "--wall-seconds",
        "--concurrency",
        "--shard",
        "--check-budget",
        "--price-in",
        "--price-out",
        "--label",
        "--prompt-suffix",
        "--changed-benchmark",
        "--retry-faults",
    ],
    "compare": ["FIRST", "SECOND"],
    "budgets": ["DIR...", "--at", "--calls"],
    "merge": ["OUT", "SHARD..."],
    "benchmarks": ["--data"],
    "report": ["[RECIPE] [FIELD=VALUE ...]", "--run"],
    "recipe": ["[RECIPE] [FIELD=VALUE ...]", "--yaml"],
    "show": ["DIR", "--stage", "--name", "--index"],
    "doctor": [],
    "replay": ["SET", "[RECIPE] [FIELD=VALUE ...]", "--out"],
    "data import": ["SOURCE", "--layout", "--out", "--problems", "[RECIPE] [FIELD=VALUE ...]"],
    "data export": ["SET", "--layout", "--out"],
    "data problems": [
        "SOURCE...",
        "--out",
        "--against",
        "--columns",
        "--prompt-suffix",
        "--limit",
        "--any-language",
        "--keep-duplicates",
        "--json",
        "--html",
    ],
    "data curate": ["SET... [FIELD=VALUE ...]", "--out", "--recipe", "--dropped", "--html", "--json"],
    "data stats": ["SET...", "--tokenizer", "--json", "--html"],
    "sandbox serve": [
        "[RECIPE] [FIELD=VALUE ...]",
        "--host",
        "--port",
        "--token-file",
        "--no-tokens",
        "--client-sessions",
        "--client-cells",
        "--client-queue",
        "--queue-seconds",
        "--idle-seconds",
        "--body-mb",
    ],
    "sandbox run": ["[RECIPE] [FIELD=VALUE ...]", "--setup"],
    "lab problems": ["--family", "--split", "--count", "--seed"],
    "lab build-base": ["--out", "--seed", "--tokens"],
}
"""Every command with its arguments and options. A change here changes what users type."""

HEAVY = ("torch", "transformers", "numpy", "pydantic", "yaml", "rich", "matplotlib", "aster.config")


def aster(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "aster", *arguments], capture_output=True, text=True, cwd=cwd, check=False)


def surface(group: click.Group, prefix: str = "") -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= surface(command, f"{prefix}{name} ")
            continue
        found[prefix + name] = [
            parameter.opts[0] if isinstance(parameter, click.Option) else str(parameter.metavar) for parameter in command.params
        ]
    return found


def test_the_surface_is_frozen() -> None:
    assert surface(main) == SURFACE
    assert list(main.list_commands(click.Context(main))) == list(dict.fromkeys(name.split()[0] for name in SURFACE))


@pytest.mark.parametrize("command", ["", *SURFACE])
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(main, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "Usage: " in result.output
    assert len(result.output.splitlines()) > 3


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"]])
def test_help_imports_nothing_of_weight(arguments: list[str]) -> None:
    code = (
        f"import sys; from aster.cli import main; main({arguments!r}, standalone_mode=False); "
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize("command", ["recipe", "show RUN", "lab problems --count 1", "benchmarks", "compare A B"])
def test_reading_commands_import_no_torch(command: str, tmp_path: Path) -> None:
    code = (
        "import sys; from click.testing import CliRunner; from aster.cli import main; "
        f"CliRunner().invoke(main, {command.split()!r}); print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout.splitlines()[-1] == "False False"


def test_version() -> None:
    assert aster("--version").stdout.strip() == f"aster, version {__version__}"


@pytest.mark.parametrize(
    ("arguments", "field", "named"),
    [
        (["run", "none.yaml"], "none.yaml", ""),
        (["rl", "bad.yaml"], "bad.yaml", "'rl.step'"),
        (["sft", "good.yaml", "sft.stages.7.epochs=1"], "override 'sft.stages.7.epochs=1'", "'7'"),
        (["evaluate", "good.yaml", "rl.steps"], "override 'rl.steps'", "rl.steps=20"),
        (["report", "--run", "nowhere"], "nowhere", "recipe.yaml"),
        (["report", "good.yaml"], "runs/good-aster-s1", "recipe.yaml"),
        (["show", "nowhere"], "nowhere", "recipe.yaml"),
        (["recipe", "seed=one"], "overrides", "'seed'"),
        (["run", "good.yaml", "--run", "good.yaml/x"], "good.yaml/x", os.strerror(errno.ENOTDIR)),
    ],
)
def test_errors_of_the_user_are_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], field: str, named: str) -> None:
    (tmp_path / "bad.yaml").write_text("rl:\n  step: 3\n")
    (tmp_path / "good.yaml").write_text("name: good\n")
    result = aster(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    require(printed(result.stderr), field, named)


@pytest.mark.parametrize(
    "arguments", [["fly"], ["run"], ["run", "--fast", "x.yaml"], ["report"], ["report", "a=1", "--run", "x"]]
)
def test_errors_of_usage_exit_with_code_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "Error: " in result.output


def test_a_bug_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> str:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("aster.config.describe.describe", broken)
    result = CliRunner().invoke(main, ["recipe"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_recipe_prints_fields_with_overrides(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("name: good\n")
    result = CliRunner().invoke(main, ["recipe", str(tmp_path / "good.yaml"), "rl.steps=3"])
    assert result.exit_code == 0
    assert 'name = "good"   (str; default "run")' in result.output
    assert "rl.steps = 3   (int > 0; default 30)" in result.output
    assert "rl.steps = 30   (int > 0)" in CliRunner().invoke(main, ["recipe"]).output


def test_lab_problems_are_json_lines() -> None:
    import json

    arguments = ["lab", "problems", "--count", "3", "--family", "hunt", "--split", "test", "--seed", "5"]
    result = CliRunner().invoke(main, arguments)
    problems = [json.loads(line) for line in result.output.splitlines()]
    assert len({problem["id"] for problem in problems}) == 3
    assert {"id", "prompt", "answer", "source"} <= problems[0].keys()
    assert CliRunner().invoke(main, arguments).output == result.output


def test_ctrl_c_is_one_line_that_says_the_run_resumes(tmp_path: Path) -> None:
    # A pipe that nobody writes to keeps the process waiting for its recipe: interrupted for certain at work.
    os.mkfifo(tmp_path / "recipe.yaml")
    process = subprocess.Popen(
        [sys.executable, "-m", "aster", "run", str(tmp_path / "recipe.yaml")], stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    with open(tmp_path / "recipe.yaml", "w"):  # opens once the process reads
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130
    assert errors == "aster: interrupted; the same command resumes the run\n"
