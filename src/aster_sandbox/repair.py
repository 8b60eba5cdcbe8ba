"""Repair a cell that is no valid Python but shows what its writer meant: fences, prompts, magics, indentation, look-alikes.

Valid cells never come here. Each step removes one thing that is certainly not code, and the rest is compiled after each step.
The last steps guess; they count only if the result compiles."""

from __future__ import annotations

import ast
import html
import linecache
import re
import warnings
from collections.abc import Callable

from aster_sandbox import characters, magic_lines, unwrap
from aster_sandbox.reading import split_lines
from aster_sandbox.traces import CELL

Lines = list[str]
_SHELL_WORDS = {
    *("apt", "apt-get", "bash", "brew", "cat", "cd", "chmod", "cp", "curl", "dir", "docker", "echo", "export", "find"),
    *("git", "grep", "head", "ls", "make", "mkdir", "mv", "npm", "node", "pip", "pip3", "pwd", "python", "python3"),
    *("rm", "sh", "sudo", "tail", "tar", "touch", "unzip", "wget", "which"),
}


def repair(source: str, flags: int) -> str | None:
    """The Python code that the writer of ``source``, which does not compile, meant. None if there is nothing to repair.

    Every line keeps its number. The result may still not compile; then its error is the one to show. ``flags``: for
    ``compile``.
    """

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cell is compiled again later, and warns then
        return _repaired(split_lines(source), lambda text: _parse(text, flags))


def _repaired(lines: Lines, parse: Callable[[str], ast.Module | None]) -> str | None:
    certain: list[Callable[[Lines], Lines | None]] = [
        characters.clean,
        unwrap.unfence,
        lambda lines: unwrap.unprompt(lines, parse),
        unwrap.dedent,
        magic_lines.to_python,
    ]
    guesses = [unwrap.dedent_rest, characters.straighten_quotes, characters.replace_lookalikes]
    meant = lines
    for step in certain:
        changed = step(meant)
        if changed is not None:
            meant = changed
            if parse("\n".join(meant)) is not None:
                return "\n".join(meant)
    guessed = meant
    for step in guesses:
        changed = step(guessed)
        if changed is not None:
            if parse("\n".join(changed)) is not None:
                return "\n".join(changed)
            guessed = changed if step is not unwrap.dedent_rest else guessed
    # What was removed is certainly not code, so show the error in the rest, unless it is in a line that was rewritten.
    return "\n".join(meant) if meant != lines and not _is_rewritten(meant) else None


def _is_rewritten(lines: Lines) -> bool:
    """Whether the syntax error is in a line that ``magic_lines`` made."""
    try:
        compile("\n".join(lines), "<cell>", "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
    except SyntaxError as error:
        return error.lineno is None or magic_lines.PREFIX in "".join(lines[error.lineno - 1 : error.lineno])
    except (ValueError, MemoryError, RecursionError):
        return True
    return False


def _parse(text: str, flags: int) -> ast.Module | None:
    try:
        tree = compile(text, "<cell>", "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    return tree if isinstance(tree, ast.Module) else None


def as_written(source: str, meant: str) -> str:
    """The lines of a repaired cell to show in tracebacks: lines that became hidden calls are shown as they were written."""
    pairs = zip(split_lines(source), meant.split("\n"), strict=True)
    return "\n".join(written if magic_lines.PREFIX in line else line for written, line in pairs)


def advice(error: SyntaxError) -> str:
    """A line of help to print after the traceback of a cell that is no valid Python; empty if there is none to give."""
    if error.filename is None or not error.filename.startswith(CELL):
        return ""  # an error in code that the cell itself compiled
    entry = linecache.cache.get(error.filename)
    if entry is None or len(entry) < 4:
        return ""
    lines = [line.removesuffix("\n") for line in entry[2]]
    text = _advice(lines, lines[error.lineno - 1] if error.lineno and error.lineno <= len(lines) else "", error.msg or "")
    return f"[{text}]\n" if text else ""


def _advice(lines: Lines, line: str, message: str) -> str:
    fences = [found for each in lines if (found := unwrap.FENCE.match(each)) is not None]
    if fences:
        languages = [fence["info"] for fence in fences if not unwrap.is_fenced_python(fence["info"])]
        if languages:
            return f"this tool runs Python, and the code is marked as {languages[0]!r}"
        return "this tool runs all that it is sent as Python: send the code alone, without text around it"
    source = "\n".join(lines)
    if "\n" not in source and "\\n" in source and _compiles(source.replace("\\n", "\n").replace("\\t", "\t")):
        return "the code has a backslash and an n where its lines should end: send line ends"
    if re.search(r"&(lt|gt|amp|quot|#39);", source) and _compiles(html.unescape(source)):
        return "the code has HTML's &lt; &gt; &amp; &quot; in it: send the characters themselves"
    if message.startswith("unterminated string literal"):
        return "a string in single quotes ends with its line: write \\n for a line end inside it, or put it in triple quotes"
    words = line.split()
    if words and (words[0] in _SHELL_WORDS or words[0] == "$"):
        return "this tool runs Python; a line that begins with ! is run by a shell"
    return ""


def _compiles(source: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _parse(source, ast.PyCF_ALLOW_TOP_LEVEL_AWAIT) is not None
