"""Remove what surrounds a cell's code: fences, prompts, indentation.

Each function takes the cell's lines and returns the same number of lines, or None if there is nothing to remove."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from os.path import commonprefix

from aster_sandbox.reading import Reader

Lines = list[str]
FENCE = re.compile(r"[ \t]*(?P<marks>`{3,}|~{3,})[ \t]*(?P<info>.*?)[ \t]*$")
_IN_ONE_LINE = re.compile(r"\s*(?P<marks>`+)(?:(?:i?python|py)[\d.]*\s)?\s*(?P<code>.*?)\s*(?P=marks)\s*$", re.IGNORECASE)
_PYTHON = re.compile(r"((i?python|py)[\d.]*|pycon|pyi|jupyter|repl|code|tool_code)?$", re.IGNORECASE)
_PROMPT = re.compile(r"[ \t]*(?:>>>|In ?\[\d+\]:)(?: |$)")
_CONTINUED = re.compile(r"[ \t]*\.{3,}:?(?: |$)")
_SILENT = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Pass)
"""Statements that print nothing at a prompt."""


def is_fenced_python(info: str) -> bool:
    """Whether the text after a fence's marks names Python, or no language."""
    word = re.match(r"[{.\s]*([\w+#-]*(?:\.\d+)*)", info)
    return word is not None and _PYTHON.match(word[1]) is not None


def unfence(lines: Lines) -> Lines | None:
    """Remove one or more fences with no text outside them. The last fence may lack its end; a single one may lack its
    beginning."""
    filled = [place for place, line in enumerate(lines) if not _is_empty(line)]
    if not filled:
        return None
    first, last = filled[0], filled[-1]
    if first == last and (whole := _IN_ONE_LINE.match(lines[first])) is not None:
        return [*lines[:first], whole["code"], *lines[first + 1 :]] if whole["code"] else None
    opening = FENCE.match(lines[first])
    if opening is not None:
        return _open_fences(lines)
    closing = FENCE.match(lines[last])
    if closing is None or closing["info"] or lines[first].lstrip().startswith("%%"):
        return None
    if any(FENCE.match(line) for line in lines[:last]):
        return None  # for instance, a fence with text around it
    return [*lines[:last], "", *lines[last + 1 :]]


def _open_fences(lines: Lines) -> Lines | None:
    meant: Lines = []
    marks = ""
    reader = Reader()
    for line in lines:
        fence = FENCE.match(line) if not reader.quote else None
        if not marks:
            if fence is not None and is_fenced_python(fence["info"]):
                marks = fence["marks"]
                reader = Reader()
            elif not _is_empty(line):
                return None  # text outside the fences
            meant.append("" if fence is not None else line)
        elif fence is not None and not fence["info"] and fence["marks"].startswith(marks):
            marks = ""
            meant.append("")
        else:
            reader.pieces(line)
            meant.append(line)
    return meant


def _is_empty(line: str) -> bool:
    """Whether a line is blank or a comment."""
    return not line.strip() or line.lstrip().startswith("#")


def unprompt(lines: Lines, parse: Callable[[str], ast.Module | None]) -> Lines | None:
    """Remove the prompts and the output from a copied interactive session."""
    first = next((line for line in lines if line.strip()), "")
    if not _PROMPT.match(first):
        return None
    code: Lines = []
    others: Lines = []
    """Lines without a prompt: output, or code whose prompt is missing."""
    for line in lines:
        prompt = _PROMPT.match(line) or _CONTINUED.match(line)
        code.append(line[prompt.end() :] if prompt else "")
        others.append("" if prompt else line)
    tree = parse("\n".join(code))
    both = [mine or other for mine, other in zip(code, others, strict=True)]
    if tree is None:
        return both if parse("\n".join(both)) is not None else code
    for place in range(1, len(lines)):
        if others[place] and not others[place - 1] and _prints_nothing(tree, place):
            end = next((later for later in range(place, len(lines)) if not others[later]), len(lines))
            if parse("\n".join(others[place:end])) is not None:
                code[place:end] = others[place:end]
    return code


def _prints_nothing(tree: ast.Module, line: int) -> bool:
    """Whether the last statement that begins in the first ``line`` lines prints nothing."""
    before = [statement for statement in tree.body if statement.lineno <= line]
    return bool(before) and isinstance(before[-1], _SILENT)


def dedent(lines: Lines) -> Lines | None:
    """Remove the indentation that all statements have in common.

    Lines inside strings lose it too if all of them have it, because then the whole cell was indented after it was written."""
    fresh, inner = _kinds(lines)
    margin = _margin(lines, fresh)
    if not margin:
        return None
    if all(lines[place].startswith(margin) or not lines[place].strip() for place in inner):
        inner = [place for place in inner if not lines[place].startswith(margin)]
    return _without(lines, margin, set(inner))


def dedent_rest(lines: Lines) -> Lines | None:
    """Fix a cell whose first line has another indentation than the others, as after a strip() of the whole text."""
    fresh, inner = _kinds(lines)
    if len(fresh) < 2:
        return None
    first = fresh[0]
    margin = _margin(lines, fresh[1:])
    if margin:
        return _without(lines, margin, {first, *inner})
    stripped = lines[first].lstrip(" \t")
    return [*lines[:first], stripped, *lines[first + 1 :]] if stripped != lines[first] else None


def _without(lines: Lines, margin: str, kept: set[int]) -> Lines:
    meant = []
    for place, line in enumerate(lines):
        if place in kept:
            meant.append(line)
        elif line.startswith(margin):
            meant.append(line[len(margin) :])
        else:
            meant.append(line.lstrip(" \t"))
    return meant


def _kinds(lines: Lines) -> tuple[list[int], list[int]]:
    """Indices of the lines that begin a statement, and of those that begin inside a string."""
    fresh, inner = [], []
    reader = Reader()
    for place, line in enumerate(lines):
        content = line.strip()
        if reader.quote:
            inner.append(place)
        elif reader.fresh and content and not content.startswith("#"):
            fresh.append(place)
        reader.pieces(line)
    return fresh, inner


def _margin(lines: Lines, places: list[int]) -> str:
    """The indentation that lines have in common."""
    indents = [lines[place][: len(lines[place]) - len(lines[place].lstrip(" \t"))] for place in places]
    return commonprefix(indents)  # noqa: RUF071 - a common prefix of characters is meant
