"""Run the commands of docs/teacher.md and docs/exchange.md exactly as the pages give them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pyarrow.parquet
import pytest
from click.testing import CliRunner

from aster.cli import main
from aster.data.formats import LAYOUTS
from aster.data.sets import iterate_set
from aster.teacher.failures import FAILURES
from tests.data.formats.test_layouts import ROWS
from tests.teacher.fake_teacher import FakeTeacher, serving

DOCS = Path(__file__).parents[3] / "docs"


def commands(page: str) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in page.splitlines() if line.startswith("    aster ")]


def run(arguments: list[str]) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, (arguments, result.output, result.exception)
    return result.output


def write_problems(path: Path, prompts: list[str]) -> None:
    lines = [json.dumps({"id": f"p{n}", "prompt": text, "answer": "42"}) for n, text in enumerate(prompts)]
    path.write_text("\n".join(lines) + "\n")


def test_the_commands_of_the_teacher_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "teacher.md").read_text()
    monkeypatch.chdir(tmp_path)
    write_problems(tmp_path / "problems.jsonl", ["What is 6*7?", "What is 6*7? [silent]"])
    recipe = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert recipe is not None
    with serving(FakeTeacher()) as teacher:
        text = recipe[1].replace("http://127.0.0.1:8000", teacher.address)
        (tmp_path / "taught.yaml").write_text(text + "model: {path: lab, threads: 1}\nsandbox: {preload: []}\n")
        listed = commands(page)
        assert [arguments[0] for arguments in listed] == ["synthesize", "show", "synthesize"]
        outputs = [run(arguments) for arguments in listed]
    assert "product = 6 * 7" in outputs[1]
    found = list(iterate_set(tmp_path / "runs" / "taught" / "synthesize" / "transcripts.jsonl"))
    assert sorted(t.reward or 0.0 for t in found) == [0.0] * 4 + [1.0] * 4
    assert set(re.findall(r"^\| `(\w+)` \|.*\| (?:engine_error|token_budget) \|$", page, re.MULTILINE)) == set(FAILURES)


def test_the_commands_of_the_exchange_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "exchange.md").read_text()
    monkeypatch.chdir(tmp_path)
    write_problems(tmp_path / "problems.jsonl", ["What is 6*7?"])
    _, row = ROWS["ReTool-SFT"]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "retool.parquet")
    for arguments in commands(page):
        # Preloading libraries takes seconds, and these cells use none.
        run([*arguments, *(["sandbox.preload=[]"] if arguments[0] == "replay" else [])])
    assert list(iterate_set(tmp_path / "back.jsonl")) == list(iterate_set(tmp_path / "retool.jsonl"))
    assert json.loads((tmp_path / "replayed.json").read_text())["same"] == 1
    named = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert named == set(LAYOUTS)
