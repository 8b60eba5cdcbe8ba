"""Seeded answers that could stop or slow down a grader, and random text. Used by the tests and benchmarks/verifier.py."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

LONG = 100_000


def _tower(source: random.Random) -> str:
    bases = [str(source.randint(2, 99)) for _ in range(source.randint(2, 8))]
    form = source.choice(["latex", "python", "mixed"])
    if form == "python":
        return "**".join(bases)
    tower = bases[-1]
    for base in reversed(bases[:-1]):
        tower = f"{base}^{{{tower}}}" if form == "latex" else f"({base})^({tower})"
    return tower


def _giant(source: random.Random) -> str:
    size = source.choice([10, 1000, 4300, 5000, 100_000])
    return source.choice(
        [
            f"10^{{{10 ** size.bit_length()}}}",
            f"10**{size}",
            "9" * size,
            f"{'7' * size}/{'3' * (size - 1)}",
            f"0.{'1' * size}",
            f"1e{size}",
            f"1e{'9' * min(size, 40)}",
            f"2^{{{'1' * min(size, 300)}}}",
            f"-{'8' * size}.5",
            f"\\sqrt{{{'5' * size}}}",
        ]
    )


def _factorial(source: random.Random) -> str:
    number = source.choice([5, 99, 2500, 10**5, 10**9, 10**18])
    return source.choice(
        [
            f"{number}!",
            f"({number}!)!",
            f"{number}" + "!" * source.randint(2, 50),
            f"\\binom{{{number}}}{{{number // 2}}}",
            r"\binom{10^9}{5\cdot 10^8}",
            f"factorial(factorial({number}))",
            f"({number}!)^{{{number}}}",
            f"{{{number} \\choose 77}}",
            f"\\frac{{{number}!}}{{{number + 1}!}}",
            f"\\Gamma({number})",
        ]
    )


def _nested(source: random.Random) -> str:
    depth = source.choice([5, 20, 40, 150, 2000, 20_000])
    opening, inner, closing = source.choice(
        [
            ("{", "5", "}"),
            ("(", "5", ")"),
            (r"\frac{1}{1+", "1", "}"),
            (r"\sqrt{", "2", "}"),
            (r"\left(", "x", r"\right)"),
            ("[", "1,2", "]"),
            (r"\{", "1", r"\}"),
            ("|", "5", "|"),
            (r"\boxed{", "5", "}"),
            (r"\text{", "5", "}"),
            ("sin(", "1", ")"),
            (r"\sin^{", "2", "}"),
            ("-", "5", ""),
            ("2^{", "2", "}"),
            ("((", "", ""),
            ("", "5", "))"),
            ("1,(", "2", ")"),
            (r"\lfloor ", "7/2", r" \rfloor"),
            ("a_{", "1", "}"),
            (r"\frac", "12", ""),
            ("x=", "5", ""),
            ("e^{", "1", "}"),
            (r"\log ", "2", ""),
            ("1+(2*", "3", ")"),
            ("Matrix([", "[1]", "])"),
        ]
    )
    return opening * depth + inner + closing * depth


def _long(source: random.Random) -> str:
    piece = source.choice(
        [
            r"\frac{1}{2}+",
            "1+",
            "x",
            " ",
            "\\",
            "{",
            "}",
            "$",
            r"\sqrt{2}\cdot ",
            "1,",
            "(1,2),",
            "[",
            r"\text{a}",
            ".",
            "-",
            "%",
            r"\pm 1",
            "&",
            r"\\",
            r"\begin{pmatrix}",
            "\n",
            "\u00bd",
            "\u2212",
            "the answer is ",
            "x=",
            "!",
            "0",
            r"\left",
            r"\quad",
            "**",
            "1 ",
            "_1",
            "^2",
            "\u221a",
            "and ",
        ]
    )
    size = source.choice([200, 990, 1001, LONG])
    return (piece * (size // len(piece) + 1))[:size] + source.choice(["", "5", "}"])


def _calculus(source: random.Random) -> str:
    many = source.choice(["10", "100", "10^9", "10^{10^{10}}", r"\infty", "n", "999999"])
    return source.choice(
        [
            rf"\sum_{{k=1}}^{{{many}}} \frac{{1}}{{k}}",
            rf"\prod_{{k=1}}^{{{many}}} k",
            r"\int_0^\infty e^{-x^{x^x}} dx",
            rf"\sum_{{k=1}}^{{{many}}} k^k",
            r"\int \sin(\cos(\tan x)) dx",
            rf"\lim_{{x\to\infty}} x^{{{many}}}",
            r"\sum \sum \sum",
            r"\int",
            rf"\prod_{{k=1}}^{{{many}}} (k!)!",
            r"\det\begin{vmatrix} 1 & 2 \\ 3 & 4 \end{vmatrix}",
            rf"\sum_{{k=0}}^{{{many}}} \binom{{{many}}}{{k}}",
            r"\gcd(10^{100}, 2^{99})",
        ]
    )


def _size(source: random.Random) -> str:
    number = source.choice(["10^5", "10^{30}", "10^{9999}", "99999999", "1e300", r"\infty", "-10^7"])
    return source.choice(
        [
            f"e^{{{number}}}",
            rf"\sin({number})",
            rf"\log({number})",
            f"({number})^{{{number}}}",
            rf"\sqrt[{number}]{{2}}",
            f"exp(exp({number}))",
            rf"\lfloor \pi \cdot {number} \rfloor",
            f"i^{{{number}}}",
            f"2^{{-{number}}}",
            rf"\tan^{{{number}}} 1",
            f"{number}\\%",
            f"x^{{{number}}}",
            rf"\pi^{{{number}}}",
            f"(1+x)^{{{number}}}",
            f"{number} - {number}",
            rf"\frac{{1}}{{{number}-{number}}}",
            f"0^{{{number}}}",
        ]
    )


PIECES = re.findall(
    r"\S+",
    r"""\frac { } ( ) [ ] ^ _ \ \left \right | , = < > + - * / ! % $ & \sqrt \sin \log \pi x e i 9 1 0 . \text{ \pm \infty \cup
    \{ \} and cm \binom \begin{pmatrix} \end{pmatrix} \\ ^{9^{9 10** \overline{ \circ ' \" # ~ \boxed{ sqrt( oo I : ; \ldots
    \ne \le \in""",
)


ODD = (" ", "\x00", "\ud800", "\u202e", "\u0663", "\u00b2")


def _pieces(source: random.Random) -> str:
    return "".join(source.choice((*PIECES, *ODD)) for _ in range(source.randint(1, 60)))


def noise(source: random.Random) -> str:
    """A random string: printable ASCII, any Unicode with lone surrogates, or pieces of LaTeX."""
    kind = source.randrange(3)
    if kind == 0:
        return "".join(chr(source.randint(32, 126)) for _ in range(source.randint(0, 50)))
    if kind == 1:
        return "".join(
            chr(source.choice([source.randint(0, 255), source.randint(0, 0x10FFFF)])) for _ in range(source.randint(0, 50))
        )
    return _pieces(source)


FAMILIES: dict[str, Callable[[random.Random], str]] = {
    "power tower": _tower,
    "giant number": _giant,
    "factorial": _factorial,
    "nesting": _nested,
    "long text": _long,
    "calculus": _calculus,
    "argument": _size,
    "pieces": _pieces,
}


def hostile_answers(count: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """``count`` pairs (family, answer) that cycle through the families."""
    source = random.Random(seed)
    names = list(FAMILIES)
    for index in range(count):
        name = names[index % len(names)]
        yield name, FAMILIES[name](source)


def random_strings(count: int, seed: int = 0) -> Iterator[str]:
    """``count`` random strings, every third one in a box."""
    source = random.Random(seed)
    for index in range(count):
        text = noise(source)
        yield text if index % 3 else rf"so \boxed{{{text}}} is it"
