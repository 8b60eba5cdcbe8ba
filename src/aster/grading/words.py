"""Words with a known meaning: functions, Greek letters, multipliers, units."""

from __future__ import annotations

import re

FUNCTIONS = {
    "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc",
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot", "asin": "asin", "acos": "acos", "atan": "atan",
    "sinh": "sinh", "cosh": "cosh", "tanh": "tanh", "coth": "coth",
    "ln": "ln", "log": "log", "lg": "lg", "exp": "exp",
    "sqrt": "sqrt", "cbrt": "cbrt", "abs": "abs", "Abs": "abs", "floor": "floor", "ceiling": "ceil", "ceil": "ceil",
    "factorial": "factorial", "binomial": "binomial", "comb": "binomial", "Rational": "ratio", "Fraction": "ratio",
}  # fmt: skip
"""Names of functions in LaTeX (with a backslash) and Python, and their names in the tree."""

INVERSES = {"sin": "asin", "cos": "acos", "tan": "atan", "cot": "acot"}

GREEK = frozenset(
    [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "varepsilon",
        "zeta",
        "eta",
        "theta",
        "vartheta",
        "iota",
        "kappa",
        "lambda",
        "mu",
        "nu",
        "xi",
        "rho",
        "sigma",
        "tau",
        "upsilon",
        "phi",
        "varphi",
        "chi",
        "psi",
        "omega",
        "Gamma",
        "Delta",
        "Theta",
        "Lambda",
        "Xi",
        "Pi",
        "Sigma",
        "Phi",
        "Psi",
        "Omega",
        "ell",
        "hbar",
    ]
)

MULTIPLIERS = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

UNITS = {
    "°": "degree degrees deg", "%": "percent pct", "$": "dollar dollars usd", "€": "euro euros", "£": "pound-sterling",
    "¢": "cent cents", "m": "meter meters metre metres", "cm": "centimeter centimeters centimetre centimetres",
    "mm": "millimeter millimeters", "km": "kilometer kilometers kilometre kilometres", "inch": "inches", "ft": "foot feet",
    "yard": "yards yd", "mile": "miles", "second": "seconds", "minute": "minutes", "hour": "hours hr hrs",
    "day": "days", "week": "weeks", "month": "months", "year": "years", "kg": "kilogram kilograms", "gram": "grams",
    "mg": "milligram milligrams", "pound": "pounds lb lbs", "ounce": "ounces oz", "ton": "tons", "liter": "liters litre litres",
    "ml": "mL milliliter milliliters", "gallon": "gallons", "mph": "", "kph": "", "unit": "units", "square unit": "",
    "radian": "radians rad", "joule": "joules", "newton": "newtons", "watt": "watts", "volt": "volts", "hz": "Hz hertz",
    "acre": "acres", "rupee": "rupees", "bit": "bits", "byte": "bytes",
    "way": "ways", "person": "people persons", "student": "students", "child": "children", "man": "men", "woman": "women",
    "boy": "boys", "girl": "girls", "apple": "apples", "orange": "oranges", "ball": "balls", "book": "books", "coin": "coins",
    "marble": "marbles", "point": "points", "solution": "solutions", "pair": "pairs", "triple": "triples", "number": "numbers",
    "integer": "integers", "digit": "digits", "time": "times", "step": "steps", "game": "games", "card": "cards",
    "square": "squares", "triangle": "triangles", "edge": "edges", "side": "sides", "color": "colors", "move": "moves",
    "term": "terms", "root": "roots", "value": "values", "page": "pages", "ticket": "tickets", "car": "cars", "tile": "tiles",
    "factor": "factors", "divisor": "divisors", "prime": "primes", "subset": "subsets", "arrangement": "arrangements",
    "permutation": "permutations", "path": "paths", "sequence": "sequences", "function": "functions", "region": "regions",
}  # fmt: skip
"""Units and counted things: the word that they are compared as, and its synonyms. Other words ("squared", "thirds") are not
units and are not dropped."""

_BY_WORD = {word: unit for unit, words in UNITS.items() for word in (unit, *words.split())} | {
    word: word for word in MULTIPLIERS
}
_LETTERS = frozenset(["m", "s", "g", "h", "L", "N", "J", "W", "V", "A", "K", "C", "F"])
"""Units of one letter. They are units only in roman type; in italics they are names."""
_ENDS = re.compile(r"(?:square|sq\.?|cubic|cu\.?)\s+")


def unit_of(words: list[str], roman: bool = False) -> str | None:
    r"""Return the unit that words name, in a normal form (``cm^2``, ``m/s``), or None.

    Args:
        words: the words after a number, with ``^2``, ``/`` and ``%``.
        roman: whether they were in ``\text{}`` or ``\mathrm{}``, where a single letter may be a unit.
    """
    parts = re.findall(r"[A-Za-z]+|\^-?[0-9]+|[/%°]", " ".join(words).replace("\\", "").replace("~", " "))
    if not parts or "".join(parts) != re.sub(r"[\s.~\\{}]", "", "".join(words)):
        return None
    unit, power = "", ""
    for part in parts:
        if part in ("square", "sq", "cubic", "cu") and part is not parts[-1]:
            power = "^3" if part.startswith("cu") else "^2"
        elif part == "per" or part == "/":
            unit, power = unit + power + "/", ""
        elif part.startswith("^"):
            unit += part
        elif part in _BY_WORD or part.casefold() in _BY_WORD or (roman and part in _LETTERS):
            if unit and not unit.endswith("/"):
                unit += " "
            unit += _BY_WORD.get(part) or _BY_WORD.get(part.casefold()) or part
        else:
            return None
    unit += power
    return unit if unit and not unit.startswith(("/", "^")) else None
