"""The Python of the pages: each block of docs/python.md is run as it stands, and those of the doors are given to the doors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
LINES = 10
"""Most lines of a block, beside its imports and blank lines."""


def blocks(page: str) -> dict[str, str]:
    """The page's Python blocks, by the heading they stand under."""
    found = {}
    for section in re.split(r"^## ", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        code = re.findall(r"^```python\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
        assert len(code) <= 1, f"{page}: two blocks under one heading"
        if code:
            found[section.partition("\n")[0]] = code[0]
    return found


def run(code: str, name: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, name, "exec"), names)
    return names


SHOWN = {
    "A graded answer": r"True .+",
    "A sandbox": r"\d+",
    "A rollout": r"(\w+ [01]\.0 \d+ .+\n?){4}",
    "A training run": r"\[[\d.]+, [\d.]+, [\d.]+\]",
    "An evaluation": r"avg@2 [\d.]+, 95% interval [\d.]+ to [\d.]+",
}
"""What each block prints."""


def test_the_page_has_these_blocks() -> None:
    assert list(blocks("python.md")) == list(SHOWN)


@pytest.mark.parametrize("heading", SHOWN)
def test_a_block_runs_as_it_stands(
    heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code = blocks("python.md")[heading]
    written = [line for line in code.splitlines() if line.strip() and not re.match(r"(from|import) ", line)]
    assert len(written) <= LINES
    monkeypatch.chdir(tmp_path)
    run(code, f"docs/python.md: {heading}")
    assert re.fullmatch(SHOWN[heading], capfd.readouterr().out.strip())


@pytest.mark.parametrize("page", ["environment.md", "tool.md", "algorithm.md"])
def test_the_blocks_of_a_door_are_what_it_takes(page: str) -> None:
    made = {heading: run(code, f"docs/{page}: {heading}") for heading, code in blocks(page).items()}
    if page == "environment.md":
        from aster.environments import Environment

        assert issubclass(made["The protocol"]["Mine"], Environment)
    elif page == "tool.md":
        from aster.environments import FunctionTool, Tool

        assert FunctionTool(made["A function"]["convert"]).schema.name == "convert"
        assert issubclass(made["A class"]["Counter"], Tool)
    else:
        from aster.algorithms import to_samples
        from aster.types import Trajectory

        group = [Trajectory("p", n, n, [1, 2], [0, 1], [0.0, -1.0], reward=float(n)) for n in range(2)]
        first, last = to_samples([group], made["The protocol"]["Mine"](), 2)
        assert (first.weights, last.weights) == (-0.5, 0.0)
