"""Ordinary cells of the corpus: work that leaves variables, expressions that use them, and checks of what cells rely on."""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass

LEANS_ON_BUILTINS = {"list", "max", "min", "print", "sum"}
"""Builtins that some ingredients hide with variables of the same name."""


@dataclass(frozen=True, slots=True)
class Work:
    """A cell that leaves variables, and expressions that use them."""

    code: str
    asks: tuple[str, ...]
    needs: frozenset[str] = frozenset()
    """What ingredients must not have broken (``ingredients.SPOILS``) for the expressions to work."""


@dataclass(frozen=True, slots=True)
class Look:
    """Code that checks something cells rely on, and what it prints."""

    code: str
    prints: str
    needs: frozenset[str] = frozenset()
    """What ingredients must not have broken (``ingredients.SPOILS``) for it to work."""


@functools.cache
def names_of(work: Work) -> set[str]:
    """All names in a work's code and expressions."""
    return _names(work.code).union(*map(_names, work.asks))


@functools.cache
def _names(code: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}


def leans(code: str) -> frozenset[str]:
    """What code needs: ``builtins`` if it uses one of LEANS_ON_BUILTINS, ``sys`` if it imports that."""
    needs = {"builtins"} if _names(code) & LEANS_ON_BUILTINS else set()
    return frozenset(needs | ({"sys"} if "import sys" in code else set()))


def _work(code: str, *asks: str, needs: str = "") -> Work:
    return Work(code.strip("\n"), asks, frozenset(needs.split()))


def _look(code: str, prints: str, needs: str = "") -> Look:
    return Look(code.strip("\n"), prints, frozenset(needs.split()) | leans(code))


WORKS = [
    _work("primes = [p for p in range(2, 200) if all(p % d for d in range(2, int(p**0.5) + 1))]", "primes[-3:]", "len(primes)"),
    _work(
        "def collatz(start):\n    steps = 0\n    while start != 1:\n"
        "        start = start // 2 if start % 2 == 0 else 3 * start + 1\n"
        "        steps += 1\n    return steps\nlongest = max(range(1, 300), key=collatz)",
        "longest, collatz(27)",
        "collatz(longest)",
    ),
    _work(
        "from fractions import Fraction\nharmonic = sum(Fraction(1, i) for i in range(1, 11))",
        "harmonic",
        "harmonic.numerator, harmonic + 1",
    ),
    _work(
        "from collections import Counter\ndigit_counts = Counter(str(2**100))",
        "digit_counts.most_common(2)",
        "digit_counts['7']",
        needs="import",
    ),
    _work(
        "from functools import lru_cache\n@lru_cache(maxsize=None)\ndef ways(m, largest):\n    if m == 0:\n"
        "        return 1\n    if m < 0 or largest == 0:\n        return 0\n"
        "    return ways(m - largest, largest) + ways(m, largest - 1)\nways(30, 30)",
        "ways(20, 20)",
        "ways(30, 30), ways.cache_info().currsize > 100",
    ),
    _work(
        "triples = [(u, v, w) for w in range(1, 40) for v in range(1, w) for u in range(1, v) if u*u + v*v == w*w]",
        "len(triples), triples[:2]",
        "triples[-1]",
    ),
    _work(
        "class Point:\n    def __init__(self, px, py):\n        self.px, self.py = px, py\n    def __repr__(self):\n"
        "        return f'Point({self.px}, {self.py})'\n    def __add__(self, other):\n"
        "        return Point(self.px + other.px, self.py + other.py)\ncorner = Point(3, 4)",
        "corner + Point(1, 1)",
        "corner",
    ),
    _work(
        "matrix = [[1, 1], [1, 0]]\ndef multiply(left, right):\n"
        "    return [[sum(p * q for p, q in zip(row, column)) for column in zip(*right)] for row in left]\n"
        "power = matrix\nfor _step in range(9):\n    power = multiply(power, matrix)",
        "power",
        "multiply(power, matrix)[0][0]",
    ),
    _work(
        "coins = [1, 2, 5, 10, 20, 50]\ntotals = [1] + [0] * 100\nfor coin in coins:\n    for amount in range(coin, 101):\n"
        "        totals[amount] += totals[amount - coin]",
        "totals[100]",
        "totals[:6]",
    ),
    _work("letters = iter('proof')\nfirst_letter = next(letters)", "first_letter + next(letters)", "''.join(letters)"),
    _work(
        "graph = {1: [2, 3], 2: [4], 3: [4], 4: [5], 5: []}\ndistance = {1: 0}\nfrontier = [1]\nwhile frontier:\n"
        "    vertex = frontier.pop(0)\n    for neighbour in graph[vertex]:\n        if neighbour not in distance:\n"
        "            distance[neighbour] = distance[vertex] + 1\n            frontier.append(neighbour)",
        "distance",
        "distance[5], graph[1]",
    ),
    _work(
        "def make_counter():\n    hits = 0\n    def counter():\n        nonlocal hits\n        hits += 1\n        return hits\n"
        "    return counter\ntick = make_counter()\ntick()",
        "tick()",
        "tick() + tick()",
    ),
    _work(
        "from dataclasses import dataclass, replace\n@dataclass(frozen=True)\nclass Bound:\n    low: int\n    high: int\n"
        "bound = Bound(0, 100)\nwhile bound.high - bound.low > 1:\n    middle = (bound.low + bound.high) // 2\n"
        "    bound = replace(bound, low=middle) if middle**3 < 5000 else replace(bound, high=middle)",
        "bound",
        "bound.high**3 >= 5000",
    ),
    _work("import math\nbinomials = [math.comb(12, j) for j in range(13)]", "max(binomials), math.gcd(84, 36)", needs="math"),
    _work(
        "from decimal import Decimal\nroot = Decimal(2).sqrt()",
        "root",
        "(root * root).quantize(Decimal('0.0001'))",
        needs="decimal",
    ),
    _work(
        "import random\ngenerator = random.Random(7)\ndice = [generator.randint(1, 6) for _roll in range(10)]",
        "dice, generator.randint(1, 6)",
        needs="random",
    ),
    _work(
        "memory_of_lucas = {0: 2, 1: 1}\ndef lucas(index):\n    if index not in memory_of_lucas:\n"
        "        memory_of_lucas[index] = lucas(index - 1) + lucas(index - 2)\n    return memory_of_lucas[index]\nlucas(25)",
        "lucas(25)",
        "memory_of_lucas[10]",
    ),
    _work(
        "queens = []\ndef place(columns):\n    if len(columns) == 6:\n        queens.append(columns)\n        return\n"
        "    for column in range(6):\n"
        "        if all(column != other and abs(column - other) != len(columns) - row for row, other in enumerate(columns)):\n"
        "            place(columns + [column])\nplace([])",
        "len(queens), queens[0]",
        "queens[-1]",
    ),
    _work(
        "polynomial = [6, -5, 1]\nroots = [r for r in range(-10, 11) if sum(c * r**i for i, c in enumerate(polynomial)) == 0]",
        "roots",
    ),
    _work(
        "squares_mod = {residue: [s for s in range(13) if s * s % 13 == residue] for residue in range(5)}",
        "squares_mod[3]",
        "squares_mod",
    ),
]
"""Their variables have names that ingredients do not use; the generator checks it."""

LOOKS = [
    _look("print('checking', 1 + 1)", "checking 2"),
    _look("import sys\nprint('to stderr', file=sys.stderr)", "to stderr"),
    _look("import sys\nsys.stdout.write('written\\n') and None", "written"),
    _look("print('naïve ∑ √2', '\\u00bd')", "naïve ∑ √2 ½"),
    _look("try:\n    line = input()\nexcept EOFError:\n    print('no input')", "no input"),
    _look("import sys\nprint(repr(sys.stdin.read()))", "''"),
    _look("import os\nos.write(1, b'raw output\\n') and None", "raw output", "process"),
    _look("import os\nos.write(2, b'raw error\\n') and None", "raw error", "process"),
    _look("import sys\nprint(sys.gettrace(), sys.getprofile())", "None None"),
    _look("for d in [1, 2, 4]:\n    print(d, end=',')\nprint()", "1,2,4,"),
    _look("print(len('abc'), sorted('cab'), abs(-3), any([0, 1]))", "3 ['a', 'b', 'c'] 3 True"),
    _look("print(max(3, 7), min(3, 7), sum([1, 2, 3]))", "7 3 6"),
    _look("def descend(level):\n    return 0 if level == 0 else 1 + descend(level - 1)\nprint(descend(300))", "300"),
    _look(
        "with open('note.txt', 'w') as note:\n    written = note.write('kept')\nprint(open('note.txt').read())",
        "kept",
        "files warnings",
    ),
    _look(
        "import signal\nprint(signal.getitimer(signal.ITIMER_REAL), signal.getitimer(signal.ITIMER_VIRTUAL))",
        "(0.0, 0.0) (0.0, 0.0)",
    ),
    _look("import _signal\nprint(_signal.pthread_sigmask(_signal.SIG_BLOCK, ()))", "set()", "import"),
    _look("import _signal\nprint(callable(_signal.getsignal(2)), _signal.alarm(0))", "True 0", "import"),
    _look("import resource\nprint(resource.getrlimit(resource.RLIMIT_NOFILE)[0])", "512", "import resource"),
    _look("from resource import RLIMIT_FSIZE, getrlimit\nprint(getrlimit(RLIMIT_FSIZE)[0])", "268435456", "import resource"),
    _look("try:\n    [][0]\nexcept IndexError as problem:\n    print('caught:', problem)", "caught: list index out of range"),
    _look("class Shown:\n    def __repr__(self):\n        return '<shown>'\nprint(Shown(), [Shown()])", "<shown> [<shown>]"),
    _look("print(eval('2 + 3 * 4'), len(compile('1', '', 'eval').co_consts))", "14 1"),
    _look("room = bytearray(8_000_000)\nprint(len(room))\ndel room", "8000000", "memory"),
    _look(
        "import os\nopened = [os.open('/dev/null', os.O_RDONLY) for _turn in range(20)]\nprint(len(set(opened)))",
        "20",
        "files process",
    ),
    _look(
        "import os\nchild = os.fork()\nif child == 0:\n    os._exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))",
        "7",
        "process child threads",
    ),
    _look(
        "import os\nprint(os.system('echo from the shell; exit 3') >> 8)", "from the shell\n3", "process child environ files"
    ),
    _look(
        "import threading\nthread = threading.Thread(target=print, args=('in a thread',))\nthread.start()\nthread.join()",
        "in a thread",
        "threads import",
    ),
    _look("import asyncio\nprint(await asyncio.sleep(0, 'awaited'))", "awaited", "asyncio import warnings"),
    _look("import colorsys\nprint(colorsys.rgb_to_hsv(1, 0, 0))", "(0.0, 1.0, 1)", "import"),
    _look("from string import ascii_lowercase\nprint(ascii_lowercase[:3])", "abc", "import"),
    _look("import json\nprint(json.loads(json.dumps({'k': [1, 2]})))", "{'k': [1, 2]}", "json import"),
    _look("import time\ntime.sleep(0.001)\nprint(time.monotonic() > 0)", "True", "time"),
]
