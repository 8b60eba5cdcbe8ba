r"""The part of the grammar that reads commands (``\frac``) and words (``sqrt``)."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING

from aster.grading.nodes import Node, Unreadable, Unsupported, product
from aster.grading.words import FUNCTIONS, GREEK, INVERSES, unit_of

if TYPE_CHECKING:
    from aster.grading.terms import TermReader

COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)
TEXTUAL = re.compile(r"\\(?:text|textbf|textit|textrm|textsf|textnormal|mathrm|mbox|operatorname\*?)\s*\{([^{}]*)\}")
WORD = re.compile(r"[A-Za-z]+")
MATRIX = re.compile(r"\\begin\s*\{([bp]?matrix|array)\}(?:\{[lcr|]*\})?(.*?)\\end\s*\{\1\}", re.DOTALL)
SEGMENT = re.compile(r"\\(?:angle|overline|widehat|triangle)\s*\{?\s*([A-Z]{1,4})\s*\}?")
LEFT_TO_MATH_VERIFY = {
    *("int", "iint", "oint", "sum", "prod", "lim", "limsup", "liminf", "cap", "setminus", "bigcup", "bigcap"),
    *("det", "max", "min", "gcd", "lcm", "pmod", "bmod", "mod", "vec", "overrightarrow"),
}
STOP_WORDS = {
    *("no", "not", "is", "at", "to", "of", "or", "and", "the", "all", "any", "one", "two", "six", "ten", "for", "per"),
    *("but", "odd", "yes", "if", "in", "on", "as", "by", "do", "an", "are", "has", "max", "min", "gcd", "lcm", "mod"),
}
"""Short words that are not read as products of letters."""
LETTER_OF_SET = re.compile(r"\s*\{?\s*([RZNQC])\s*\}?(?![A-Za-z_^])")
PAIRS = {"lfloor": ("rfloor", "floor"), "lceil": ("rceil", "ceil"), "lvert": ("rvert", "abs")}


def read(reader: TermReader) -> Node:
    r"""Read a node that begins with a backslash."""
    matrix = reader.match(MATRIX)
    if matrix:
        return _matrix(reader, matrix[2])
    textual = reader.match(TEXTUAL)
    if textual:
        return _textual(textual[1].strip(), reader)
    segment = reader.match(SEGMENT)
    if segment:
        return Node("name", (), re.sub(r"\s", "", segment[0]))
    found = reader.match(COMMAND)
    name = found[1] if found else ""
    if name == "frac":
        return Node("div", (reader.argument(), reader.argument(last=True)))
    if name in ("binom", "dbinom", "tbinom"):
        return Node("fn", (reader.argument(), reader.argument(last=True)), "binomial")
    if name == "sqrt":
        return _root(reader)
    if name == "pi":
        return Node("const", (), "pi")
    if name == "infty":
        return Node("const", (), "oo")
    if name in ("imath", "mathrm"):
        return Node("const", (), "i")
    if name in GREEK:
        return reader.subscripted("\\" + name)
    if name in FUNCTIONS and name not in ("sqrt", "Rational"):
        return _function(reader, FUNCTIONS[name], name)
    if name in ("{", "lbrace"):
        return _set(reader)
    if name in ("emptyset", "varnothing"):
        return Node("set")
    if name == "langle":
        inner = reader.inside()
        reader.need("\\rangle")
        return Node("tuple", inner.args if inner.kind == "list" else (inner,), "<>")
    if name in ("mathbb", "mathbf", "mathcal") and (letter := reader.match(LETTER_OF_SET)):
        return Node("symbol", (), letter[1])
    if name in PAIRS:
        closing, function = PAIRS[name]
        reader.deeper()
        inner = reader.sum()
        reader.depth -= 1
        reader.need("\\" + closing)
        return Node("fn", (inner,), function)
    if name == "|":
        raise Unreadable("a norm")
    if name in LEFT_TO_MATH_VERIFY or name == "begin":
        raise Unsupported(f"\\{name}")
    raise Unreadable(f"cannot read \\{name[:20]}")


def word(reader: TermReader) -> Node:
    """Read a node that begins with a letter."""
    found = reader.match(WORD)
    letters = found[0] if found else ""
    if letters == "Matrix":
        return _python_matrix(reader)
    if letters == "Eq":
        inner = reader.bracket("(")
        if inner.kind != "tuple" or len(inner.args) != 2:
            raise Unreadable("Eq takes two sides")
        return Node("rel", inner.args, ("=",))
    if letters in FUNCTIONS:
        return _function(reader, FUNCTIONS[letters], letters, python=True)
    if letters == "pi":
        return Node("const", (), "pi")
    if letters in ("oo", "infinity", "Infinity", "inf"):
        return Node("const", (), "oo")
    if letters in GREEK and len(letters) > 3:
        return reader.subscripted("\\" + letters)
    if len(letters) == 1:
        return reader.subscripted(letters)
    if len(letters) > 3 or unit_of([letters]) or letters.casefold() in STOP_WORDS:
        raise Unreadable(f"cannot read the word {letters[:20]!r}")
    if letters.isupper():
        # AB is a segment or a product. In both cases it can be treated as one name.
        return Node("name", (), letters)
    node = reader.letter(letters[0])
    for letter in letters[1:-1]:
        node = product(node, reader.letter(letter))
    return _times_last(reader, node, letters[-1])


def _times_last(reader: TermReader, node: Node, letter: str) -> Node:
    """Multiply by the last letter of a word with its power or factorial: ``ab^2`` is ``a b^2``."""
    last = reader.subscripted(letter)
    reader.space()
    if reader.peek("^", "**", "!"):
        reader.at += 2 if reader.peek("**") else 1
        factorial = reader.text[reader.at - 1] == "!"
        last = Node("fn", (last,), "factorial") if factorial else Node("pow", (last, reader.exponent()))
    return product(node, last)


def _root(reader: TermReader) -> Node:
    index = None
    reader.space()
    if reader.peek("["):
        reader.at += 1
        index = reader.sum()
        reader.need("]")
    inside = reader.argument(last=True)
    if inside.kind in ("tuple", "set", "list"):
        raise Unreadable("a root of a list")
    return Node("fn", (inside,), "sqrt") if index is None else Node("fn", (inside, index), "root")


def _function(reader: TermReader, function: str, name: str, python: bool = False) -> Node:
    """Read a function with its power, base and argument. ``python``: it was written without a backslash."""
    power = None
    base: Node | None = None
    for _ in range(2):
        reader.space()
        if reader.peek("_") and function == "log":
            reader.at += 1
            base = reader.argument()
        elif reader.peek("^"):
            reader.at += 1
            power = reader.exponent_argument()
    if power == Node("neg", (Node("num", (), (Fraction(1), None)),)):
        if function not in INVERSES:
            raise Unreadable(f"ambiguous: {name} to the power -1")
        function, power = INVERSES[function], None
    arguments = _arguments(reader)
    if function == "log" and base is not None:
        if len(arguments) != 1:
            raise Unreadable("a logarithm of several values")
        node = Node("div", (Node("fn", arguments, "ln"), Node("fn", (base,), "ln")))
    elif function == "log":
        if len(arguments) == 2:
            node = Node("div", (Node("fn", arguments[:1], "ln"), Node("fn", arguments[1:], "ln")))
        else:
            if len(arguments) != 1:
                raise Unreadable("a logarithm of several values")
            node = Node("fn", arguments, "Log" if python else "log")
    elif function == "ratio":
        node = Node("div", arguments) if len(arguments) == 2 else arguments[0]
    elif len(arguments) != (2 if function == "binomial" else 1):
        raise Unreadable(f"{name} of several values")
    else:
        node = Node("fn", arguments, function)
    return node if power is None else Node("pow", (node, power))


def _arguments(reader: TermReader) -> tuple[Node, ...]:
    r"""Read the arguments of a function: a bracket, or the factors that follow (``\sin 2x``)."""
    reader.space()
    if reader.peek("("):
        inner = reader.bracket("(")
        return inner.args if inner.kind == "tuple" else (inner,)
    reader.deeper()
    first = node = reader.power()
    while True:
        reader.space()
        if not reader.starts_factor(node) or reader.starts_function():
            break
        node = product(node, reader.power())
    reader.depth -= 1
    reader.space()
    if reader.peek("/") and first is not None:
        raise Unreadable("ambiguous: a function without brackets, then /")
    return (node,)


def _set(reader: TermReader) -> Node:
    reader.space()
    if reader.take("\\}", "\\rbrace"):
        return Node("set")
    inner = reader.inside()
    reader.need_any("\\}", "\\rbrace")
    return Node("set", inner.args if inner.kind == "list" else (inner,))


def _textual(content: str, reader: TermReader) -> Node:
    r"""Read the content of ``\text{}`` or ``\mathrm{}`` as a factor."""
    content = content.strip("~ ")
    if content in ("i", "e"):
        return reader.letter(content)
    if content in FUNCTIONS:
        return _function(reader, FUNCTIONS[content], content)
    if re.fullmatch(r"-?[0-9.]+", content) and content.count(".") < 2 and content not in (".", "-", "-."):
        return Node("num", (), (Fraction(content), len(content.partition(".")[2]) or None))
    if re.fullmatch(r"[A-Za-z]{1,3}", content) and not unit_of([content]):
        return reader.subscripted(content) if len(content) == 1 else Node("name", (), content)
    raise Unreadable(f"cannot read the text {content[:20]!r}")


def _matrix(reader: TermReader, content: str) -> Node:
    rows = re.split(r"\\\\", content)
    if rows and not rows[-1].strip(" \\"):
        rows.pop()
    cells = tuple(tuple(reader.part(cell) for cell in row.split("&")) for row in rows)
    if not cells or len({len(row) for row in cells}) != 1:
        raise Unreadable("a matrix with rows of different lengths")
    return Node("matrix", cells)


def _python_matrix(reader: TermReader) -> Node:
    inner = reader.bracket("(")
    return as_matrix(inner) or _column(inner)


def _column(node: Node) -> Node:
    if node.kind != "tuple" or node.data != "[]":
        raise Unreadable("cannot read the matrix")
    return Node("matrix", tuple((entry,) for entry in node.args))


def as_matrix(node: Node) -> Node | None:
    """Return a list of lists in square brackets as a matrix; None if it is not one."""
    if node.kind != "tuple" or node.data != "[]" or not node.args:
        return None
    if not all(row.kind == "tuple" and row.data == "[]" for row in node.args) or len({len(row.args) for row in node.args}) != 1:
        return None
    return Node("matrix", tuple(row.args for row in node.args))
