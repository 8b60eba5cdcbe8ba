"""What cells do to their process: some hundred pieces of code, read from the files in ``ingredients/``, a file for each kind.

A piece begins with a line ``=== NAME | ends: HOW ... | spoils: WHAT ... | late``; all but the name may be missing:

- ``ends``: how a cell ends that ends with it (:data:`ENDS`). Without: ``ok``.
- ``spoils``: what does not work any more in later cells, in plain Python too.
- ``late``: it may still write to the output when its cell is over.
- ``haunts``: it may still end the process, or raise, when its cell is over.
- ``inside``: it has Python show its whole stack, and so the sandbox's own frames.
- ``replaced``: nobody can undo what it does, so its process is given up.

``§n``, ``§k``, ``§s`` and ``§w`` stand for a digit, a number of two digits, a fraction of a second and a word.
"""

from __future__ import annotations

import ast
import functools
import random
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "ingredients"
ENDS = {"ok", "error", "crashed", "interrupted", "killed"}
"""``interrupted`` and ``killed`` are the two kinds of time-out."""
SPOILS = {
    *("asyncio", "builtins", "child", "decimal", "echo", "environ", "files", "import", "json", "math", "memory", "names"),
    *("process", "random", "resource", "sys", "threads", "time", "warnings"),
}
FLAGS = {"late", "haunts", "inside", "replaced"}
WORDS = ("alpha", "beta", "gamma", "delta", "omega")


@dataclass(frozen=True, slots=True)
class Ingredient:
    """One piece."""

    kind: str
    name: str
    code: str
    """With the signs for numbers and words in it."""
    ends: frozenset[str]
    spoils: frozenset[str]
    flags: frozenset[str]

    def filled(self, draw: random.Random) -> str:
        """The code, with numbers and words in the place of the signs: the same in all places."""
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
    """Names that it binds, but for plain imports: nothing that needs them can be beside it."""
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
    """All of them. ValueError where a file is not as it should be."""
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
        raise ValueError(f"{kind}: {header!r} is no header of an ingredient, or it has no code")
    return Ingredient(kind, name, code, frozenset(ends), frozenset(spoils), frozenset(flags))
