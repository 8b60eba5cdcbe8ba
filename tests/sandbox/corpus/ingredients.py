"""Ingredients: hundreds of pieces of code that change their process, read from ``ingredients/``, one file for each kind.

A piece begins with a line ``=== NAME | ends: HOW ... | spoils: WHAT ... | late``. Only the name is required:

- ``ends``: how a cell with this code at its end may end (:data:`ENDS`). Default: ``ok``.
- ``spoils``: what no longer works in later cells, as in plain Python.
- ``late``: it may still write to the output after its cell.
- ``haunts``: it may still end the process, or raise, after its cell.
- ``inside``: it makes Python show its whole stack, including the sandbox's own frames.
- ``replaced``: its effect cannot be undone, so the process is replaced.

``§n``, ``§k``, ``§s`` and ``§w`` stand for a digit, a two-digit number, a fraction of a second and a word.
"""

from __future__ import annotations

import ast
import functools
import random
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "ingredients"
ENDS = {"ok", "error", "crashed", "interrupted", "killed"}
"""``interrupted`` and ``killed`` are the two kinds of timeout."""
SPOILS = {
    *("asyncio", "builtins", "child", "decimal", "echo", "environ", "files", "import", "json", "math", "memory", "names"),
    *("process", "random", "resource", "sys", "threads", "time", "warnings"),
}
FLAGS = {"late", "haunts", "inside", "replaced"}
WORDS = ("alpha", "beta", "gamma", "delta", "omega")


@dataclass(frozen=True, slots=True)
class Ingredient:
    """One piece of code."""

    kind: str
    name: str
    code: str
    """The code, with placeholders for numbers and words."""
    ends: frozenset[str]
    spoils: frozenset[str]
    flags: frozenset[str]

    def filled(self, draw: random.Random) -> str:
        """The code with a number or word for each placeholder, the same at all its places."""
        code = self.code
        for sign, value in (
            ("§n", str(draw.randint(2, 9))),
            ("§k", str(draw.randint(20, 60))),
            ("§s", f"0.0{draw.randint(1, 4)}"),
            ("§w", draw.choice(WORDS)),
        ):
            code = code.replace(sign, value)
        return code


@functools.cache
def bound_by(ingredient: Ingredient) -> set[str]:
    """The names that it binds, except by plain imports: an entry with it must not use them otherwise."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(ingredient.filled(random.Random(0)))):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def load() -> list[Ingredient]:
    """All ingredients. Raises ValueError for an invalid header."""
    found = []
    for path in sorted(FOLDER.glob("*.txt")):
        for piece in path.read_text("utf-8").split("=== ")[1:]:
            header, _, code = piece.partition("\n")
            found.append(_read(path.stem, header, code.strip("\n")))
    return found


def _read(kind: str, header: str, code: str) -> Ingredient:
    name, *parts = (part.strip() for part in header.split("|"))
    ends, spoils, flags = {"ok"}, set[str](), set[str]()
    for part in parts:
        field, colon, values = part.partition(":")
        match field if colon else "flag":
            case "ends":
                ends = set(values.split())
            case "spoils":
                spoils = set(values.split())
            case _:
                flags.add(part)
    if not (name and code and ends <= ENDS and spoils <= SPOILS and flags <= FLAGS):
        raise ValueError(f"{kind}: {header!r} is an invalid header, or the code after it is missing")
    return Ingredient(kind, name, code, frozenset(ends), frozenset(spoils), frozenset(flags))
