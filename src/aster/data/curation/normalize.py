"""Bring the texts of problems to one notation, so that copies compare equal however they are typeset."""

from __future__ import annotations

import re
import unicodedata

from aster.data.problems import BOX_REQUEST, DAPO_HEAD, DAPO_TAIL

_REQUESTS = re.compile("|".join(map(re.escape, (BOX_REQUEST, DAPO_HEAD, DAPO_TAIL))))
_MATH = re.compile(
    r"\$\$.*?\$\$|\$[^$]*\$|\\\[.*?\\\]|\\\(.*?\\\)|\[asy\].*?\[/asy\]"
    r"|\\begin\{(align|aligned|array|asy|cases|equation|gather|matrix|pmatrix|tikzpicture)\*?\}.*?\\end\{\1\*?\}",
    re.DOTALL,
)
_DRAWING = re.compile(r"\[asy\].*?\[/asy\]|\\begin\{(asy|tikzpicture)\}.*?\\end\{\1\}", re.DOTALL)
_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|,|\\,|\\!)(?=\d{3}(?!\d))")
_COMMAND = re.compile(r"\\([a-zA-Z]+)")
_SYNTAX = frozenset(
    re.findall(
        r"\w+",
        """
        begin big bigg bigl bigr biggl biggr bm boldsymbol cdot cdots bullet cfrac dfrac displaystyle dots dotsc dotsb end
        ensuremath frac ge geq geqslant ldots le left leq leqslant limits mathbb mathbf mathcal mathit mathrm mathsf mid middle
        ne neq nolimits operatorname over overline par qquad quad right rm text textbf textit textstyle textrm tfrac times to
        underline vdots widehat widetilde
        """,
    )
)
"""LaTeX commands that are notation or layout and are dropped. Every other command is replaced by its name."""
_CHARACTERS = {
    "π": " pi ", "√": " sqrt ", "∠": " angle ", "△": " triangle ", "Δ": " delta ", "α": " alpha ", "β": " beta ",
    "γ": " gamma ", "θ": " theta ", "λ": " lambda ", "ω": " omega ", "φ": " phi ", "σ": " sigma ", "∑": " sum ", "∏": " prod ",
    "∫": " int ", "∞": " infty ", "°": " circ ", "∪": " cup ", "∩": " cap ", "∈": " in ", "⊥": " perp ", "≡": " equiv ",
}  # fmt: skip
"""Characters, and the names of the LaTeX commands that they are equivalent to."""
_TRANSLATION = str.maketrans(_CHARACTERS)
_SAME_COMMAND = {
    "degree": "circ",
    "measuredangle": "angle",
    "bigtriangleup": "triangle",
    "varphi": "phi",
    "varepsilon": "epsilon",
}
_BROKEN = str.maketrans({"\x07": "\\a", "\x08": "\\b", "\x0b": "\\v", "\x0c": "\\f"})
"""Control characters in copies where the ``\\f`` of ``\\frac`` was once parsed as a string escape."""
_TOKEN = re.compile(r"[^\W\d_]+|\d+")
LATIN = 0x24F
"""Last code point of the Latin blocks."""
GREEK = range(0x370, 0x400)


def bare(prompt: str) -> str:
    """Return a prompt without the requests for an answer format that data sets add."""
    return _REQUESTS.sub(" ", prompt).strip()


def tokens(prompt: str) -> list[str]:
    r"""Return the words and numbers of a problem, in lower case and in one notation.

    ``\dfrac{a}{b}``, ``\frac ab`` and ``a/b`` all give ``a b``: signs, braces and commands that only typeset are dropped. Greek
    letters and Unicode symbols become the names of their commands. ``1{,}000`` and ``1,000`` become ``1000``.
    """
    text = _DRAWING.sub(" ", bare(prompt.translate(_BROKEN)))
    text = unicodedata.normalize("NFKC", text.translate(_TRANSLATION)).lower()
    text = _COMMAND.sub(_command, _THOUSANDS.sub("", text))
    return _TOKEN.findall(text)


def _command(match: re.Match[str]) -> str:
    name = match[1]
    return " " if name in _SYNTAX else f" {_SAME_COMMAND.get(name, name)} "


def prose(prompt: str) -> str:
    """Return the words of a problem outside its formulas."""
    text = _COMMAND.sub(" ", _MATH.sub(" ", bare(prompt)))
    return " ".join(word for word in _TOKEN.findall(text) if len(word) > 1 and not word.isdecimal())
