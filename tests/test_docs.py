"""The pages name what is there: links lead to files and headings, files named in the text exist, overrides are fields."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from aster.config.file import load_recipe
from aster.recipes import shipped_names

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLACES = ("", "src", "src/aster", "src/aster_sandbox", "tests")
"""Where a named file may be, below the root."""


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            found.append(target)
    return found


def missing_files(page: Path) -> list[str]:
    """Files named as ``path/to/file.py`` that are nowhere. Names in commands and blocks are examples."""
    text = re.sub(r"^(```.*?^```$|    .*?$)", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.py)`", text)
    return [name for name in named if not any((ROOT / place / name).exists() for place in PLACES)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page: Path) -> None:
    assert broken_links(page) == []
    assert missing_files(page) == []


def recipe_commands(page: Path) -> list[list[str]]:
    """The page's commands on a recipe, from blocks, as [recipe, override, ...]. ``my.yaml`` stands for any recipe."""
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    found = []
    for line in re.findall(r"^ {4,}aster (?:run|synthesize|curate|sft|rl|evaluate) (?!-)(.*)$", text, flags=re.MULTILINE):
        words = shlex.split(re.split(r"\s{2,}", line)[0], comments=True)
        if words and (words[0] == "my.yaml" or words[0] in shipped_names()):
            given = [word for word in words[1:] if "=" in word and not word.startswith("-") and word.isascii()]
            found.append([words[0] if words[0] in shipped_names() else "lab", *given])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_overrides_of_a_page_are_fields_of_a_recipe(page: Path) -> None:
    for recipe, *overrides in recipe_commands(page):
        load_recipe(recipe, [text for text in overrides if not re.fullmatch(r"[\w.]+=(?:[A-Z]+|\.\.\.)", text)])


def test_the_commands_are_found() -> None:
    assert sum(len(recipe_commands(page)) for page in PAGES) > 15


def test_a_broken_page_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n[a](none.md) [b](#a-page) [c](#none) `rl/none.py` `rollout/loop.py`\n\n    `in/a_block.py`\n")
    assert broken_links(page) == ["none.md", "#none"]
    assert missing_files(page) == ["rl/none.py"]
