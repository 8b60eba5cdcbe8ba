"""Import boundaries: ``aster_sandbox`` imports nothing of ``aster``, and others import only its public names."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import aster_sandbox

ROOT = Path(__file__).parents[2]
FROM_INSIDE = {"benchmarks/_sandbox_floor.py": {"aster_sandbox.warm"}}
"""Benchmarks that measure a part of the package, with the modules that they may import."""


def imports(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The modules that a file imports, each with the names it imports from it. Relative imports are skipped."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or "", [alias.name for alias in node.names]


def strange_imports(path: Path, allowed: set[str]) -> list[str]:
    """The imports of a file from ``aster_sandbox`` that are neither public names nor from an allowed module."""
    found = []
    for module, names in imports(path):
        if module == "aster_sandbox" and names:
            found += [f"aster_sandbox.{name}" for name in names if name not in aster_sandbox.__all__]
        elif module.split(".")[0] == "aster_sandbox" and module not in allowed:
            found.append(module)
    return found


def test_the_sandbox_imports_nothing_of_aster() -> None:
    files = list((ROOT / "src" / "aster_sandbox").rglob("*.py"))
    assert len(files) > 30
    assert [
        f"{path.relative_to(ROOT)}: {module}"
        for path in files
        for module, _ in imports(path)
        if module.split(".")[0] in ("aster", "torch", "transformers")
    ] == []


@pytest.mark.parametrize("folder", ["src/aster", "benchmarks", "studies"])
def test_others_import_only_public_names(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    found = {
        str(path.relative_to(ROOT)): strange_imports(path, FROM_INSIDE.get(str(path.relative_to(ROOT)), set()))
        for path in files
    }
    assert {name: modules for name, modules in found.items() if modules} == {}


def test_private_imports_are_detected(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "from aster_sandbox import Sandbox, output\nimport aster_sandbox.warm\ndef f():\n    from aster_sandbox.client import C"
    )
    assert strange_imports(file, set()) == ["aster_sandbox.output", "aster_sandbox.warm", "aster_sandbox.client"]


def test_public_names_exist_and_are_imported_lazily() -> None:
    assert all(getattr(aster_sandbox, name) is not None for name in aster_sandbox.__all__)
    assert sorted(aster_sandbox.__all__) == aster_sandbox.__all__
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = aster_sandbox.nothing
    code = "import sys, aster_sandbox; print(sorted({'asyncio', 'pydantic', 'httpx2', 'click'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
