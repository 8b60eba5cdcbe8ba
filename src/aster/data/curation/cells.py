"""Find the names that a cell reads from the session and the names that it binds, by reading its code.

The code is parsed with :mod:`ast` and followed statement by statement: a name that is read before the cell binds it comes from
an earlier cell or is a builtin. Limits: code that is not plain Python (magics, a syntax error) gives no result; ``exec`` and
``globals()`` are not followed; an object is known only by its name, so changes in place are not seen; both branches of an
``if`` count as run.
"""

from __future__ import annotations

import ast
import builtins
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field

BUILTINS = frozenset(dir(builtins))
LEAST_DIGITS = 3
"""Fewest digits of a number that can identify its origin. Two shorter numbers are often equal by chance."""

_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda)
_NUMBER = re.compile(r"(?<![\w.])(?=\d[\d.]{2})\d+(?:\.\d+)?(?!\w|\.\d)")


@dataclass(slots=True)
class Cell:
    """The names and numbers of one cell."""

    needs: set[str] = field(default_factory=set)
    """Names that it reads before it binds them, without builtins."""
    binds: set[str] = field(default_factory=set)
    """Names that it binds to values, functions and classes."""
    imports: set[str] = field(default_factory=set)
    """Names that it binds by importing."""


def read_cell(code: str) -> Cell | None:
    """Return the cell's names; None if the code is not plain Python."""
    try:
        with warnings.catch_warnings():
            # Strings in the model's code may have invalid escapes, which the parser warns about.
            warnings.simplefilter("ignore")
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    cell = Cell()
    deferred: set[str] = set()
    try:
        _statements(tree.body, cell, deferred)
    except RecursionError:
        return None
    cell.needs |= deferred - cell.binds - cell.imports
    cell.needs -= BUILTINS
    return cell


def telling_numbers(text: str) -> set[str]:
    """Return the numbers in a text that are long enough to identify their origin, without round ones such as ``1000``."""
    return {number for number in _NUMBER.findall(text) if len(number.replace(".", "").strip("0")) >= LEAST_DIGITS}


def _statements(body: Iterable[ast.stmt], cell: Cell, deferred: set[str]) -> None:
    """Follow statements in order. ``deferred`` collects the names that functions read when they are called."""
    for statement in body:
        kind = type(statement)
        if kind is ast.Expr:
            _expression(statement, cell)
        elif kind is ast.Assign:
            _expression(statement.value, cell)  # type: ignore[attr-defined]
            for target in statement.targets:  # type: ignore[attr-defined]
                _expression(target, cell)
        elif kind is ast.AugAssign:
            _expression(statement.value, cell)  # type: ignore[attr-defined]
            if isinstance(statement.target, ast.Name):  # type: ignore[attr-defined]
                _read(statement.target.id, cell)  # type: ignore[attr-defined]
            _expression(statement.target, cell)  # type: ignore[attr-defined]
        elif kind in (ast.Import, ast.ImportFrom):
            for alias in statement.names:  # type: ignore[attr-defined]
                cell.imports.add((alias.asname or alias.name).partition(".")[0])
        elif kind in (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef):
            _definition(statement, cell, deferred)
        else:
            _compound(statement, cell, deferred)


def _compound(statement: ast.stmt, cell: Cell, deferred: set[str]) -> None:
    """Follow any other statement, with or without blocks in it: its parts in the order of evaluation."""
    if isinstance(statement, ast.For | ast.AsyncFor):
        _expression(statement.iter, cell)
        _expression(statement.target, cell)
        _statements((*statement.body, *statement.orelse), cell, deferred)
        return
    blocks: list[ast.stmt] = []
    for name, value in ast.iter_fields(statement):
        if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
            blocks += value
        elif name in ("handlers", "cases"):
            for part in value:
                if getattr(part, "name", None):
                    cell.binds.add(part.name)
                for expression in (getattr(part, "type", None), getattr(part, "guard", None)):
                    if expression is not None:
                        _expression(expression, cell)
                for pattern in ast.walk(part.pattern) if name == "cases" else ():
                    if bound := getattr(pattern, "name", None) or getattr(pattern, "rest", None):
                        cell.binds.add(bound)
                blocks += part.body
        elif isinstance(value, ast.AST):
            _expression(value, cell)
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, ast.AST):
                    _expression(item, cell)
    _statements(blocks, cell, deferred)


def _definition(statement: ast.stmt, cell: Cell, deferred: set[str]) -> None:
    """Follow a function or class. Its body runs later, so the outside names that it reads go to ``deferred``."""
    for decorator in statement.decorator_list:  # type: ignore[attr-defined]
        _expression(decorator, cell)
    inner = Cell()
    if isinstance(statement, ast.ClassDef):
        for base in (*statement.bases, *(keyword.value for keyword in statement.keywords)):
            _expression(base, cell)
    else:
        arguments = statement.args  # type: ignore[attr-defined]
        for default in (*arguments.defaults, *arguments.kw_defaults):
            if default is not None:
                _expression(default, cell)
        named = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg)
        inner.binds.update(argument.arg for argument in named if argument is not None)
    local: set[str] = set()
    _statements(statement.body, inner, local)  # type: ignore[attr-defined]
    declared = {name for node in statement.body if isinstance(node, ast.Global) for name in node.names}  # type: ignore[attr-defined]
    cell.binds |= declared & inner.binds
    deferred |= inner.needs | (local - inner.binds - inner.imports)
    cell.binds.add(statement.name)  # type: ignore[attr-defined]


def _read(name: str, cell: Cell) -> None:
    if name not in cell.binds and name not in cell.imports:
        cell.needs.add(name)


def _expression(node: ast.AST, cell: Cell) -> None:
    """Collect the names in an expression or in the target of an assignment."""
    stack = [node]
    while stack:
        current = stack.pop()
        kind = type(current)
        if kind is ast.Name:
            if type(current.ctx) is ast.Load:  # type: ignore[attr-defined]
                _read(current.id, cell)  # type: ignore[attr-defined]
            else:
                cell.binds.add(current.id)  # type: ignore[attr-defined]
        elif kind is ast.Constant:
            continue
        elif kind in _COMPREHENSIONS:
            _scope(current, cell)
        else:
            # The stack is last in, first out: push in reverse to visit the fields in order.
            for name in reversed(current._fields):
                value = getattr(current, name)
                if isinstance(value, ast.AST):
                    stack.append(value)
                elif isinstance(value, list):
                    stack += [item for item in reversed(value) if isinstance(item, ast.AST)]


def _scope(node: ast.AST, cell: Cell) -> None:
    """Collect the names that a comprehension or lambda reads from outside; the names that it binds are local to it."""
    own: set[str] = set()
    read: set[str] = set()
    stack = [node]
    while stack:
        child = stack.pop()
        if type(child) is ast.Name:
            (read if type(child.ctx) is ast.Load else own).add(child.id)
            continue
        if type(child) is ast.arg:
            own.add(child.arg)
        for name in child._fields:
            value = getattr(child, name)
            if isinstance(value, ast.AST):
                stack.append(value)
            elif isinstance(value, list):
                stack += [item for item in value if isinstance(item, ast.AST)]
    for name in read - own:
        _read(name, cell)
