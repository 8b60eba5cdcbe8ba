r"""The part of the grammar that reads terms: sums, products, powers, and atoms."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from fractions import Fraction

from aster.grading import commands, numerals
from aster.grading.commands import TEXTUAL, WORD
from aster.grading.cursor import DEEPEST, Cursor
from aster.grading.nodes import Node, Unreadable, product
from aster.grading.words import FUNCTIONS, unit_of

RELATION = re.compile(
    r"\\(?:leqslant|geqslant|leqq|geqq|leq|geq|le|ge|neq|ne|lt|gt|approx|in|equiv|sim)(?![A-Za-z])|<=|>=|==|!=|[<>=]"
)
AND_OR = re.compile(
    r"\\text\s*\{\s*,?\s*(and|or)\s*\}|(?<![A-Za-z\\])(and|or)(?![A-Za-z])|(\\lor|\\vee)(?![A-Za-z])|(\\land|\\wedge)(?![A-Za-z])"
)
DOTS = re.compile(r"\\(?:l|c)?dots[a-z]?(?![A-Za-z])|\.\.\.")
COMMAND = re.compile(r"\\([A-Za-z]+)|\\(.)", re.DOTALL)
DEGREE = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))")
SUBSCRIPT = re.compile(r"_\s*(?:\{([^{}]*)\}|([A-Za-z0-9]))")
APPLIED = re.compile(r"\s*\(([^()]*)\)")
NO_FACTORS = {
    *("cup", "cap", "setminus", "rvert", "rfloor", "rceil", "rangle", "rbrace", "rbrack", "pm", "mp", "end", "mid", "ldots"),
    *("dots", "cdots", "text", "lor", "vee", "land", "wedge", "choose", "over"),
}
"""Commands that end a product."""
CLOSERS = {"(": ")]", "[": ")]"}
APPLICATIONS = frozenset("fghFGHPQTOE")
"""Letters that are read as functions before a bracket: ``f(2)`` is a name, but ``x(2)`` is a product."""


class TermReader(Cursor, ABC):
    """Reads a term. A subclass reads the lists and relations that may be inside the term's brackets."""

    def __init__(self, text: str, thousands: bool) -> None:
        super().__init__(text)
        self.bars = 0  # number of open |
        self.thousands = thousands
        self.round = 0  # number of open brackets in which a comma is a separator

    @abstractmethod
    def listing(self, closers: str) -> Node:
        """Read items up to a closing delimiter or the end. Without ``closers``, a single item is returned as it is."""

    @abstractmethod
    def relation(self) -> Node:
        """Read one item of a list."""

    # --- arithmetic

    def sum(self) -> Node:
        self.deeper()
        terms: list[Node] = []
        while True:
            self.space()
            sign = self.take("+", "-", "\\pm", "\\mp")
            if terms and sign is None:
                break
            term = self.term()
            if sign == "-":
                term = Node("neg", (term,))
            elif sign in ("\\pm", "\\mp"):
                term = Node("pm", (term,), sign)
            terms.append(term)
        self.depth -= 1
        return Node("add", tuple(terms)) if len(terms) > 1 else terms[0]

    def term(self) -> Node:
        node = self.signed()
        slashes = 0
        while True:
            self.space()
            if self.peek("**"):
                raise Unreadable("a power without a base")
            if self.take("*", "\\cdot", "\\times", "\\ast"):
                node = product(node, self.signed())
                continue
            if self.peek("//"):
                raise Unreadable("// is not read")
            if self.take("/", "\\div"):
                slashes += 1
                if slashes > DEEPEST:
                    raise Unreadable("too many fractions")
                node = Node("div", (node, self.signed()))
                continue
            if not self.starts_factor(node):
                return node
            if slashes:
                raise Unreadable("ambiguous: a factor after a fraction with /")
            node = product(node, self.power())

    def signed(self) -> Node:
        """Read a factor with any signs before it."""
        negative = False
        while sign := self.take("-", "+"):
            negative ^= sign == "-"
        factor = self.power()
        return Node("neg", (factor,)) if negative else factor

    def starts_factor(self, before: Node) -> bool:
        """Return whether another factor follows without an operator in between."""
        self.space()
        rest = self.text[self.at : self.at + 1]
        if (
            not rest
            or rest in ")]},;:=<>!+-/*^_'%&\"?"
            or AND_OR.match(self.text, self.at)
            or RELATION.match(self.text, self.at)
        ):
            return False
        if rest == "|":
            return self.bars == 0
        if rest.isdigit() or rest == ".":
            if (before.args[-1] if before.kind == "mul" else before).kind in ("num", "name", "const", "neg"):
                raise Unreadable("two numbers side by side")
            return not DOTS.match(self.text, self.at)
        if rest == "\\":
            found = COMMAND.match(self.text, self.at)
            if found is None or (found[2] is not None and found[2] not in "{|"):
                return False
            textual = TEXTUAL.match(self.text, self.at)
            if textual:
                inner = textual[1].strip()
                return inner in ("i", "e") or inner in FUNCTIONS
            return found[1] not in NO_FACTORS
        if rest.isalpha():
            found = WORD.match(self.text, self.at)
            word = found[0] if found else ""
            if before.kind in ("tuple", "union") and word == "U":
                return False
            return 0 < len(word) < 2 or not self._is_unit_word(word)
        return rest in "({["

    @staticmethod
    def _is_unit_word(word: str) -> bool:
        return word not in FUNCTIONS and unit_of([word]) is not None

    def power(self) -> Node:
        node = self.postfix()
        self.space()
        if self.peek("^") or self.peek("**"):
            self.at += 2 if self.peek("**") else 1
            self.deeper()
            node = Node("pow", (node, self.exponent()))
            self.depth -= 1
            if re.match(r"\s*!(?!=)", self.text[self.at :]):
                raise Unreadable("ambiguous: the factorial of a power")
        return node

    def exponent(self) -> Node:
        self.space()
        if self.take("-"):
            self.deeper()
            inner = self.exponent()
            self.depth -= 1
            return Node("neg", (inner,))
        if self.peek("{"):
            return self.group()
        if self.peek("\\prime", "'", "*"):
            raise Unreadable("a prime or star")
        return self.power()

    def postfix(self) -> Node:
        node = self.atom()
        while True:
            self.space()
            degree = DEGREE.match(self.text, self.at)
            if degree and node.kind != "deg":
                self.at = degree.end()
                node = Node("deg", (node,))
            elif self.peek("!") and not self.peek("!="):
                self.at += 1
                if self.peek("!"):
                    raise Unreadable("a double factorial")
                node = Node("fn", (node,), "factorial")
            elif node.kind == "num" and self.peek("\\%", "%") and not re.match(r"\\?%\s*[0-9(A-Za-z\\]", self.text[self.at :]):
                self.at += 2 if self.peek("\\%") else 1
                node = Node("pct", (node,))
            elif self.peek("'", "_"):
                raise Unreadable("a prime or subscript")
            else:
                return node

    # --- atoms

    def atom(self) -> Node:
        self.space()
        character = self.text[self.at : self.at + 1]
        if character.isdigit() or (character == "." and not DOTS.match(self.text, self.at)):
            return numerals.read(self)
        if character and character in "([":
            return self.bracket(character)
        if character == "{":
            return self.group()
        if character == "|":
            return self.absolute("|", "|")
        if character == "\\":
            return self.command()
        if character.isalpha() and character.isascii():
            return self.word()
        raise Unreadable(
            f"cannot read {self.text[self.at : self.at + 12]!r}" if character else "something is missing at the end"
        )

    def bracket(self, opening: str) -> Node:
        self.at += 1
        self.deeper()
        self.round += 1
        bars, self.bars = self.bars, 0
        inner = self.listing(CLOSERS[opening])
        self.space()
        closing = self.text[self.at : self.at + 1]
        if closing not in (")", "]"):
            raise Unreadable("a bracket is not closed")
        self.at += 1
        self.round -= 1
        self.depth -= 1
        self.bars = bars
        if len(inner.args) == 1:
            if closing != {"(": ")", "[": "]"}[opening]:
                raise Unreadable("brackets that do not match")
            only = inner.args[0]
            # [[1, 2]] is a matrix of one row.
            return Node("tuple", (only,), "[]") if opening == "[" and only.kind == "tuple" else only
        return Node("tuple", inner.args, opening + closing)

    def group(self) -> Node:
        """Read ``{...}``: a LaTeX group, a set if it contains a separating comma, ``n \\choose k`` or ``a \\over b``."""
        self.need("{")
        self.deeper()
        bars, self.bars = self.bars, 0
        round_, self.round = self.round, 0
        comma = re.match(r"[^{}()\[\]]*[,;]", self.text[self.at :])
        grouped = comma and numerals.COMMAS.fullmatch(self.text[self.at : self.text.find("}", self.at)].strip())
        self.round = 1 if comma and not grouped else 0
        inner = self.listing("set")
        if inner.args and len(inner.args) == 1:
            only = inner.args[0]
            how = self.take("\\choose", "\\over")
            if how:
                second = self.sum()
                only = Node("div", (only, second)) if how == "\\over" else Node("fn", (only, second), "binomial")
        else:
            only = Node("set", inner.args)
        self.need("}")
        self.bars, self.round = bars, round_
        self.depth -= 1
        return only

    def absolute(self, opening: str, closing: str) -> Node:
        self.need(opening)
        self.bars += 1
        self.deeper()
        inner = self.sum()
        self.depth -= 1
        self.need(closing)
        self.bars -= 1
        return Node("fn", (inner,), "abs")

    def inside(self) -> Node:
        """Read a list inside delimiters. The caller reads both delimiters."""
        self.deeper()
        bars, self.bars, self.round = self.bars, 0, self.round + 1
        inner = self.listing("")
        self.bars, self.round, self.depth = bars, self.round - 1, self.depth - 1
        return inner

    def part(self, text: str) -> Node:
        """Return the tree of a text that is a part of this one, such as the entry of a matrix."""
        inner = type(self)(text, False)
        inner.depth, inner.round = self.depth + 1, 1
        node = inner.relation()
        inner.space()
        if inner.at < len(text):
            raise Unreadable("cannot read an entry of the matrix")
        return node

    def exponent_argument(self) -> Node:
        r"""Read the power of a function's name: ``\sin^2``."""
        self.space()
        return Node("neg", (self.argument(),)) if self.take("-") else self.argument()

    def starts_function(self) -> bool:
        """Return whether the name of a function is at this position."""
        found = COMMAND.match(self.text, self.at)
        if found:
            return found[1] in FUNCTIONS and found[1] != "sqrt"
        word = WORD.match(self.text, self.at)
        return word is not None and word[0] in FUNCTIONS and word[0] != "sqrt"

    def argument(self, last: bool = False) -> Node:
        """Read a LaTeX argument: a group, one digit, one letter or one command. ``last``: no other argument follows."""
        self.space()
        if self.peek("{"):
            return self.group()
        character = self.text[self.at : self.at + 1]
        if character.isdigit():
            self.at += 1
            if last and self.text[self.at : self.at + 1].isdigit():
                # TeX reads \sqrt12 as the root of 1, followed by 2, but the author probably meant the root of 12.
                raise Unreadable("ambiguous: an argument of several digits without braces")
            return Node("num", (), (Fraction(int(character)), None))
        if character.isalpha() and character.isascii():
            self.at += 1
            return self.letter(character)
        if character == "\\":
            return self.command()
        if character == "(":
            return self.bracket("(")
        raise Unreadable("an argument is missing")

    def command(self) -> Node:
        return commands.read(self)

    def letter(self, letter: str) -> Node:
        if letter in ("i", "I"):
            return Node("const", (), "i")
        return Node("const", (), "e") if letter == "e" else Node("name", (), letter)

    def word(self) -> Node:
        """Read letters without a backslash: a function, a constant, or a product of names."""
        return commands.word(self)

    def subscripted(self, name: str) -> Node:
        """Read the rest of a name: its subscript, its primes, and its bracket if it is a function."""
        self.space()
        applied = name in APPLICATIONS
        found = self.match(SUBSCRIPT) if self.peek("_") else None
        if self.peek("_"):
            raise Unreadable("a subscript")
        if found:
            name += "_" + re.sub(r"\s|\\text|\\mathrm|[{}]", "", found[1] or found[2])
        while self.peek("'"):
            self.at += 1
            name += "'"
        if applied:
            bracket = self.match(APPLIED)
            if bracket:
                return Node("name", (), f"{name}({re.sub(r'[ ]+', ' ', bracket[1]).strip()})")
        if found or name.endswith("'") or applied:
            return Node("name", (), name)
        return self.letter(name)
