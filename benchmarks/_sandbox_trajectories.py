"""Four trajectories of eight cells as models write them on mathematics problems, with the answers that must come back.

Two are plain Python (a count by brute force, a search), one asks sympy about numbers, one does algebra and linear algebra with
sympy and numpy. Some cells compute for a second, as counts by brute force do.
"""

from __future__ import annotations

COUNT = [
    (
        """\
from itertools import permutations

def valid(p):
    return all(abs(p[i] - p[i + 1]) > 1 for i in range(len(p) - 1))

for n in range(1, 8):
    print(n, sum(1 for p in permutations(range(n)) if valid(p)))""",
        "1 1\n2 0\n3 0\n4 2\n5 14\n6 90\n7 646",
    ),
    (
        """\
counts = {n: sum(1 for p in permutations(range(n)) if valid(p)) for n in range(1, 10)}
counts[9]""",
        "47622",
    ),
    (
        """\
def recurrence(n):
    a = [1, 1, 0, 0]
    while len(a) <= n:
        k = len(a)
        a.append((k + 1) * a[-1] - (k - 2) * a[-2] - (k - 5) * a[-3] + (k - 3) * a[-4])
    return a[n]

print(all(recurrence(n) == c for n, c in counts.items()))""",
        "True",
    ),
    (
        """\
recurrence(12)""",
        "63779034",
    ),
    (
        """\
from math import factorial
round(recurrence(12) / factorial(12), 4)""",
        "0.1331",
    ),
    (
        """\
from fractions import Fraction
from math import comb
total = sum(Fraction(comb(10, k), 2**k) for k in range(11))
print(total, float(total))""",
        "59049/1024 57.6650390625",
    ),
    (
        """\
assert total == Fraction(3, 2) ** 10""",
        "[no output]",
    ),
    (
        """\
print('answer:', recurrence(12) % 1000)""",
        "answer: 34",
    ),
]
SEARCH = [
    (
        """\
from math import gcd, isqrt

triples = []
for a in range(1, 900):
    for b in range(a + 1, 900):
        c = isqrt(a * a + b * b)
        if c * c == a * a + b * b and gcd(a, b) == 1:
            triples.append((a, b, c))
len(triples)""",
        "160",
    ),
    (
        """\
max(triples, key=lambda t: t[2])""",
        "(832, 855, 1193)",
    ),
    (
        """\
by_sum = {}
for t in triples:
    by_sum.setdefault(sum(t), []).append(t)
max(len(v) for v in by_sum.values())""",
        "2",
    ),
    (
        """\
def digits(n):
    return sum(int(d) for d in str(n))

found = [n for n in range(1, 400000) if digits(n) ** 3 == n]
found""",
        "[1, 512, 4913, 5832, 17576, 19683]",
    ),
    (
        """\
from functools import lru_cache

@lru_cache(maxsize=None)
def ways(total, largest):
    if total == 0:
        return 1
    if total < 0 or largest == 0:
        return 0
    return ways(total - largest, largest) + ways(total, largest - 1)

[ways(n, n) for n in (5, 10, 20, 50)]""",
        "[7, 42, 627, 204226]",
    ),
    (
        """\
import random
random.seed(1)
trials = 20000
hits = sum(sorted(random.random() for _ in range(3))[1] < 0.5 for _ in range(trials))
print(round(hits / trials, 1))""",
        "0.5",
    ),
    (
        """\
from collections import Counter
Counter(c % 4 for _, _, c in triples)""",
        "Counter({1: 160})",
    ),
    (
        """\
print('answer:', len(found) + len(triples))""",
        "answer: 166",
    ),
]
NUMBERS = [
    (
        """\
from sympy import divisors, factorint, isprime, totient
n = 2**16 - 1
factorint(n)""",
        "{3: 1, 5: 1, 17: 1, 257: 1}",
    ),
    (
        """\
print(len(divisors(n)), totient(n))""",
        "16 32768",
    ),
    (
        """\
hits = [p for p in range(2, 60000) if isprime(p) and isprime(p + 2)]
len(hits)""",
        "811",
    ),
    (
        """\
hits[-3:]""",
        "[59471, 59627, 59669]",
    ),
    (
        """\
pow(7, 2024, 1000), pow(3, -1, 1000)""",
        "(401, 667)",
    ),
    (
        """\
def order(a, m):
    k, x = 1, a % m
    while x != 1:
        x = x * a % m
        k += 1
    return k

[order(10, p) for p in (7, 13, 17, 19, 23)]""",
        "[6, 6, 16, 18, 22]",
    ),
    (
        """\
sum(totient(k) for k in range(1, 300))""",
        "27318",
    ),
    (
        """\
answer = sum(d for d in divisors(n) if d % 4 == 1)
print('answer:', answer)""",
        "answer: 27864",
    ),
]
ALGEBRA = [
    (
        """\
import sympy as sp
x, y = sp.symbols('x y')
roots = sp.solve(x**2 - 5*x + 6, x)
roots""",
        "[2, 3]",
    ),
    (
        """\
sp.solve([x + y - 7, x - y - 1], [x, y])""",
        "{x: 4, y: 3}",
    ),
    (
        """\
sp.expand((x + y)**4)""",
        "x**4 + 4*x**3*y + 6*x**2*y**2 + 4*x*y**3 + y**4",
    ),
    (
        """\
import numpy as np
A = np.array([[2.0, 1.0], [1.0, 3.0]])
print(round(float(np.linalg.det(A)), 6))""",
        "5.0",
    ),
    (
        """\
print(np.linalg.solve(A, np.array([5.0, 10.0])))""",
        "[1. 3.]",
    ),
    (
        """\
sp.Rational(1, 3) + sp.Rational(1, 6)""",
        "1/2",
    ),
    (
        """\
best = max((a * b * (20 - a - b), a, b) for a in range(1, 20) for b in range(1, 20 - a))
best""",
        "(294, 7, 7)",
    ),
    (
        """\
print('answer:', sum(roots) + best[0])""",
        "answer: 299",
    ),
]
TRAJECTORIES = [COUNT, SEARCH, NUMBERS, ALGEBRA]
