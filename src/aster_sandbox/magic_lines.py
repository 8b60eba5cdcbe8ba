"""Translate IPython's lines in a cell (``%magic``, ``!command``, ``name?``) into calls of hidden builtins
(``magics.BUILTINS``)."""

from __future__ import annotations

import ast
import re

from aster_sandbox.reading import Reader

Lines = list[str]
PREFIX = "__sandbox_"
MAGIC, CELL_MAGIC, SHELL, SHELL_LINES, RUN, NOTE, HELP = (
    f"{PREFIX}{name}__" for name in ("magic", "cell_magic", "shell", "shell_lines", "run", "note", "help")
)
OPTIONS = {
    "time": r"--no-raise-error\s+",
    "timeit": r"-(?:[nrp]\s*\d+|[tcqo]|v\s*\d+)(?:\s+|$)",
    "prun": r"-(?:[lsTD]\s*\S+|[rq])(?:\s+|$)",
    "memit": r"-(?:[rti]\s*\d+|[co])(?:\s+|$)",
    "lprun": r"-(?:[fmTDu]\s*\S+|[rsz])(?:\s+|$)",
    "mprun": r"-(?:[fT]\s*\S+|[rc])(?:\s+|$)",
}
"""Magics whose argument is code, each with a pattern of its options."""
ABOUT_CODE = {*OPTIONS, "capture"}
"""Magics that keep Python code as such: after ``%%name``, the rest of the cell is still Python."""
SILENT = {"matplotlib", "config"}
"""Magics that are ignored without a note, because cells work the same without them."""
_MAGIC = re.compile(r"(?P<marks>%%?)(?P<name>[A-Za-z_]\w*|!)(?:\s+(?P<rest>.*))?$", re.DOTALL)
_ASSIGNED = re.compile(r"(?P<target>[^=%!#]*[^=%!#\s<>+\-*/&|^:@])\s*=\s*(?P<command>!|%(?=[A-Za-z_]))(?P<rest>.*)$", re.DOTALL)
_NAME = r"(?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)"
_HELP = (re.compile(rf"(?P<marks>\?\??)\s*{_NAME}\s*$"), re.compile(rf"{_NAME}\s*(?P<marks>\?\??)\s*$"))
_PACKAGES = re.compile(
    r"(?:(?:uv\s+|python[\d.]*\s+-m\s+)?pip[\d.]*|conda|mamba)\s+(?:install|uninstall|download|list|show|freeze|remove)(?:\s|$)"
)


def to_python(lines: Lines) -> Lines | None:
    """The cell with IPython's lines as calls, or None if it has none. Only lines that begin a statement are considered."""
    reader = Reader()
    meant: Lines = []
    place = 0
    while place < len(lines):
        line = lines[place]
        if reader.fresh:
            text = line.lstrip(" \t")
            indent = line[: len(line) - len(text)]
            magic = _MAGIC.match(text)
            if magic is not None and len(magic["marks"]) == 2 and magic["name"] not in ABOUT_CODE:
                call = f"{indent}{CELL_MAGIC}({magic['name']!r}, {magic['rest'] or ''!r}, {_body(lines[place + 1 :])!r})"
                return [*meant, call, *[""] * (len(lines) - place - 1)]
            length = 1
            if text.startswith(("!", "%")) or _ASSIGNED.match(text):
                while text.endswith("\\") and place + length < len(lines):
                    text = text[:-1] + lines[place + length].strip()
                    length += 1
            call_or_code = _statement(text)
            if call_or_code is not None:
                line = indent + call_or_code
                meant += [line, *[""] * (length - 1)]
                place += length
                reader.pieces(line)
                continue
        reader.pieces(line)
        meant.append(line)
        place += 1
    return meant if meant != lines else None


def _body(lines: Lines) -> str:
    return "".join(f"{line}\n" for line in lines).rstrip("\n") + "\n" if lines else ""


def _statement(text: str) -> str | None:
    """A line (without its indentation) as Python; None if it is not one of IPython's."""
    text = text.rstrip()
    magic = _MAGIC.match(text)
    if magic is not None:
        name, rest = magic["name"], magic["rest"] or ""
        return _about_code(magic["marks"] + name, name, rest) if name in ABOUT_CODE else _magic(name, rest)
    if text.startswith("!!"):
        return f"{SHELL_LINES}({text[2:].strip()!r})"
    if text.startswith("!") and not text.startswith("!="):
        return f"{SHELL}({text[1:].strip()!r})"
    for form in _HELP:
        asked = form.match(text)
        if asked is not None:
            return f"{HELP}({asked['name']!r}, {len(asked['marks']) == 2})"
    if _PACKAGES.match(text):
        return f"{SHELL}({text!r})"
    assigned = _ASSIGNED.match(text)
    if assigned is None:
        return None
    target, rest = assigned["target"], assigned["rest"].strip()
    if assigned["command"] == "!":
        return f"{target} = {SHELL_LINES}({rest.removeprefix('!').strip()!r})"
    name, _, rest = rest.partition(" ")
    if name in OPTIONS:
        return f"{_note('%' + name)}; {target} = {_without_options(name, rest)}"
    return f"{target} = {MAGIC}({name!r}, {rest.strip()!r})"


def _magic(name: str, rest: str) -> str:
    return "pass" if name in SILENT else f"{MAGIC}({name!r}, {rest!r})"


def _about_code(written: str, name: str, rest: str) -> str:
    """``%time CODE`` as a call that prints a note, and CODE."""
    code = _without_options(name, rest)
    note = _note(written)
    if not code or name == "capture" or written == "%%time":
        return note
    try:
        tree = ast.parse(code)
    except SyntaxError:  # the code continues in the next line
        return f"{note}; {code}"
    if not tree.body:
        return note
    compound = hasattr(tree.body[0], "body") or isinstance(tree.body[0], ast.Match)  # not allowed after a semicolon
    return f"{note}; {RUN}({code!r})" if compound else f"{note}; {code}"


def _without_options(name: str, rest: str) -> str:
    return re.sub(rf"(?:{OPTIONS[name]})*", "", rest, count=1).strip() if name in OPTIONS else rest


def _note(written: str) -> str:
    return f"{NOTE}({f'[{written} is not available here; the code was run without it]'!r})"
