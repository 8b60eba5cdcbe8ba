"""The cells that ``sandbox.py`` runs, with the answers that must come back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

CPU_SECONDS = 0.010
"""Of the busy cell, as ``time.process_time`` counts them."""
LARGE_PRIME = 67280421310721
LOWEST, HIGHEST = 150_000, 200_000
"""Between them lies the other prime factor of the numbers to factor: beyond trial division, the product has 20 digits."""


@dataclass(frozen=True)
class Kind:
    """One sort of cell."""

    name: str
    before: str
    """What a session runs once, before."""
    cells: Iterator[tuple[str, str]]
    """Code and answer, without end."""


def make_kinds() -> list[Kind]:
    """The three that are timed, the one with the dear import last: replay imports again whatever came before.

    sympy keeps the factors it found, so that every ``factorint`` gets a number of its own.
    """
    # The range holds 4,136 primes. The sessions of a contestant take them in turn, so that a session meets one again late.
    primes = [n for n in range(LOWEST + 1, HIGHEST, 2) if all(n % d for d in range(3, int(n**0.5) + 1, 2))]
    numbers = ((f"sorted(factorint({p * LARGE_PRIME}))", str([p, LARGE_PRIME])) for p in itertools.cycle(primes))
    busy = f"end = time.process_time() + {CPU_SECONDS}\nwhile time.process_time() < end:\n    pass\n'done'"
    return [
        Kind("1+1", "", itertools.repeat(("1+1", "2"))),
        Kind("10 ms CPU", "import time", itertools.repeat((busy, "'done'"))),
        Kind("factorint", "from sympy import factorint", numbers),
    ]


TYPICAL = [
    (
        "import math\nprimes = [n for n in range(2, 5000) if all(n % d for d in range(2, math.isqrt(n) + 1))]\nlen(primes)",
        "669",
    ),
    (
        "from sympy import cos, factorint, integrate, simplify, sin, solve, symbols\nx = symbols('x')\nsolve(x**2 - 5*x + 6)",
        "[2, 3]",
    ),
    ("factorint(18446744073709551617)", "{274177: 1, 67280421310721: 1}"),
    ("import numpy as np\nmatrix = np.arange(16.0).reshape(4, 4) + 3 * np.eye(4)\nround(float(np.linalg.det(matrix)))", "171"),
    ("integrate(x**2 * sin(x), x), simplify(sin(x)**2 + cos(x)**2)", "(-x**2*cos(x) + 2*x*sin(x) + 2*cos(x), 1)"),
    ("sum(primes) + int(matrix.sum())", "1548268"),
]
"""Six cells of a trajectory: plain Python, sympy, numpy, and one that needs what the others left."""
