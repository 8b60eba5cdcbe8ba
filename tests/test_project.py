"""What maintainers keep beside the code agrees with it: dependencies, hooks, workflows, citation."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from aster import __version__
from aster.extras import _normal as normal

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN = ("aster", "aster_sandbox")
PACKAGES = {"yaml": "pyyaml"}
"""Modules whose package has another name."""
BROUGHT = {"markupsafe": "jinja2", "pydantic_core": "pydantic", "starlette": "fastapi"}
"""Modules that are part of what another package promises."""
OTHERS_IMPORT = {
    "accelerate": "transformers, for GGUF",
    "gguf": "transformers",
    "networkx": "cells, which find it loaded",
    "vllm": "a process of its own",
}
"""Packages that no module here imports, and who does."""


def named(requirements: list[str]) -> set[str]:
    """The packages of requirements, without ASTER's own extras."""
    names = {normal(re.split(r"[^A-Za-z0-9._-]", line)[0]) for line in requirements}
    return names - {normal(PROJECT["name"])}


EXTRAS = {extra: named(lines) for extra, lines in PROJECT["optional-dependencies"].items()}
TOOLS = {"bench", "dev", "oracle"}
"""Extras of those who work on ASTER."""


def imports() -> Iterator[tuple[str, str]]:
    """The modules that are imported anywhere in the package, by their first name, each with a file that does."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((alias.name.partition(".")[0], str(path)) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                yield node.module.partition(".")[0], str(path)


def test_every_import_is_declared_and_every_dependency_is_used() -> None:
    imported = {
        normal(PACKAGES.get(name, name)): path for name, path in imports() if name not in {*OWN, *sys.stdlib_module_names}
    }
    core = named(PROJECT["dependencies"])
    optional = set().union(*(names for extra, names in EXTRAS.items() if extra not in TOOLS))
    brought = {normal(name) for name, by in BROUGHT.items() if by in core | optional}
    undeclared = {name: path for name, path in imported.items() if name not in core | optional | brought}
    assert undeclared.keys() == {"ipython"}  # sandbox.echo: ipython; a user who wants it has it
    assert (core | optional) - imported.keys() == OTHERS_IMPORT.keys()
    assert not core & optional


def test_the_design_gives_a_reason_for_every_dependency_and_extra() -> None:
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").partition("## 14. Dependencies")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| ")]
    always = {normal(row[0]): row[1] for row in rows if len(row) == 2 and row[0] != "always installed"}
    extras = {row[0].strip("`"): row[1:] for row in rows if len(row) == 3 and row[0] != "extra"}
    assert always.keys() == named(PROJECT["dependencies"])
    assert {extra: {normal(name) for name in row[0].split(", ")} for extra, row in extras.items()} == EXTRAS
    assert all(always.values())
    assert all(row[1] for row in extras.values())


def test_nobody_is_told_to_install_from_an_index_that_does_not_have_the_package() -> None:
    files = [path for folder in ("src", "docs", "benchmarks", "studies") for path in (ROOT / folder).rglob("*.*")]
    files += [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "Makefile"]
    text = {path: path.read_text(encoding="utf-8") for path in files if path.suffix in {".py", ".md", ".yaml", ""}}
    assert len(text) > 200
    assert [path for path, content in text.items() if re.search(r"pip install\b[^\n]*\baster-tir\b", content)] == []


def lint_commands() -> list[str]:
    """The commands of ``make lint``."""
    recipe = re.search(r"^lint: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]


def test_the_hooks_run_what_make_lint_runs() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert [hook["entry"] for hook in hooks] == lint_commands()
    assert all(hook["always_run"] and not hook["pass_filenames"] for hook in hooks)


def workflow() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    return found


def test_the_workflow_runs_what_the_repository_runs_on_every_supported_python() -> None:
    jobs = workflow()["jobs"].values()
    commands = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    assert commands == [".ci/run", "make test PYTHON=python${{ matrix.python }}"]
    versions = [
        step["with"]["python-version"] for job in jobs for step in job["steps"] if "python-version" in step.get("with", {})
    ]
    matrix = [version for job in jobs for version in job.get("strategy", {}).get("matrix", {}).get("python", [])]
    tested = {*versions, *matrix} - {"${{ matrix.python }}"}
    assert tested == {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if line.startswith("Programming Language")}


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_files_for_the_forge_parse(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    if path.parent.name == "ISSUE_TEMPLATE":
        assert {"name", "description", "body"} <= content.keys()
        assert len({field["id"] for field in content["body"]}) == len(content["body"])


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["license"]
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2602.01204"


def test_the_changelog_begins_with_what_is_unreleased() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
