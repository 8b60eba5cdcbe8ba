r"""Clean the text of an answer: remove delimiters, styling and phrases around it, and unify spellings."""

from __future__ import annotations

import re
from decimal import Decimal

from aster.grading.boxed import BOX, extract_boxed

NUMBER = re.compile(r"[+-]?(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)(?:\.[0-9]*)?|[+-]?\.[0-9]+")
SPACING = re.compile(r"(?<!\\)\\[,;:! ]|\\(?:q?quad|thinspace|enspace)(?![a-zA-Z])|~")
QUAD = re.compile(r"\\q?quad(?![a-zA-Z])")
APART = re.compile(r"[0-9](?:\s+,|\s*,(?:\s|~|\\[;: ]|\\q?quad))")
"""A comma with a space next to it is a separator: ``2, 100`` is a list and not 2100."""
NO_DELIMITER = re.compile(r"\\(?:left|right)\s*\.")
SIZING = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|middle)(?![a-zA-Z])")
FRACTION = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|textsf|textnormal|mathrm|mathbf|mbox|emph)\s*\{([^{}\\]*)\}")
INNER_SPACE = re.compile(r"(?<![0-9A-Za-z])\s+|\s+(?![0-9A-Za-z])")

CHARACTERS = str.maketrans(
    dict(zip("０１２３４５６７８９", "0123456789", strict=True))
    | dict(zip("（）［］｛｝，：；＝＋－．＜＞", "()[]{},:;=+-.<>", strict=True))
    | dict.fromkeys("−–—‒﹣‑", "-")
    | dict.fromkeys("\u00a0\u2002\u2003\u2009\u200a\u202f\u3000", " ")
    | dict.fromkeys("\u200b\u200c\u200d\ufeff\u2061\u2062", "")
    | dict.fromkeys("·⋅∙•", r"\cdot ")
    | dict.fromkeys("“”„", '"')
    | dict.fromkeys("’‘′", "'")
    | {"½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}"}
    | {"⅕": r"\frac{1}{5}", "⅖": r"\frac{2}{5}", "⅗": r"\frac{3}{5}", "⅘": r"\frac{4}{5}", "⅙": r"\frac{1}{6}"}
    | {"⅚": r"\frac{5}{6}", "⅛": r"\frac{1}{8}", "⅜": r"\frac{3}{8}", "⅝": r"\frac{5}{8}", "⅞": r"\frac{7}{8}"}
    | {
        "×": r"\times ",
        "÷": r"\div ",
        "π": r"\pi ",
        "∞": r"\infty ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\ne ",
        "≈": r"\approx ",
    }
    | {"∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "°": r"^\circ ", "º": r"^\circ ", "±": r"\pm "}
    | {
        "∓": r"\mp ",
        "…": r"\ldots ",
        "⋯": r"\ldots ",
        "ℝ": r"\mathbb{R}",
        "ℤ": r"\mathbb{Z}",
        "ℕ": r"\mathbb{N}",
        "ℂ": r"\mathbb{C}",
    }
    | {"⟨": r"\langle ", "⟩": r"\rangle ", "∠": r"\angle ", "％": r"\%", "⌊": r"\lfloor ", "⌋": r"\rfloor "}
    | {"⌈": r"\lceil ", "⌉": r"\rceil ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda "}
    | {
        "μ": r"\mu ",
        "φ": r"\phi ",
        "ω": r"\omega ",
        "σ": r"\sigma ",
        "∑": r"\sum ",
        "∫": r"\int ",
        "∏": r"\prod ",
        "⁄": "/",
        "∕": "/",
    }
)
HIGH = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
LOW = str.maketrans("₀₁₂₃₄₅₆₇₈₉₋", "0123456789-")
HIGHS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+")
LOWS = re.compile("[₀₁₂₃₄₅₆₇₈₉₋]+")
ROOT_SIGN = re.compile(r"√\s*(?:([0-9.]+|[A-Za-z])|(?=[({\\]))")

HIDDEN = re.compile(r"\\(?:[hv]?phantom|hspace|vspace|color|label|tag)\*?\s*\{[^{}]*\}|\\textcolor\s*\{[^{}]*\}")
ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{(?:aligned|align\*?|equation\*?|split|gathered|displaymath|math)\}")
STYLE = re.compile(
    r"\\(?:boldsymbol|mathbf|mathit|mathsf|mathnormal|bm|bf|rm|it|underline|emph|ensuremath|textcolor)(?![a-zA-Z])\*?"
)
GROUPS = re.compile(r"(?<=[0-9])(?:\\[,!;: ]|\{,\}|\\mathrm\{,\}|(?<=[0-9]),\\!)(?=[0-9]{3}(?![0-9]))")
UNDERSCORES = re.compile(r"(?<![0-9_.])[0-9]{1,3}(?:_[0-9]{3})+(?![0-9_])")

PHRASE = re.compile(
    r"(?:(?:so|thus|hence|therefore|then|we (?:get|have|find|obtain))[,:]?\s+)?"
    r"(?:(?:the|our|my|its|your)\s+)?"
    r"(?:(?:final|correct|exact|required|desired|minimum|maximum|smallest|largest|least|greatest|total|numerical)\s+)*"
    r"(?:answer|ans|result|solution|value|sum|product|area|volume|perimeter|length|probability|number|total|remainder|distance"
    r"|option|choice|minimum|maximum)"
    r"(?:\s+of\s+(?:the\s+)?[A-Za-z]+)?\s*(?:is\s+equal\s+to|equals|is|are|was|[:=])?\s*[:=]?\s*(?![A-Za-z]*ly\b)",
    re.IGNORECASE,
)
LEAD = re.compile(r"(?:so|thus|hence|therefore|option|choice)[,:]?\s+(?=\S)", re.IGNORECASE)


def bare(text: str) -> str:
    r"""Remove what surrounds an answer: white space, ``$``, ``\( \)`` and ``\[ \]`` delimiters, a full stop."""
    text = text.strip().replace("−", "-")
    before = None
    while text != before:
        before = text
        text = text.strip()
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1]
        text = text.removeprefix("$").strip()
        if text.endswith("$") and not text.endswith("\\$"):
            text = text[:-1]
        for opening, closing in (("\\(", "\\)"), ("\\[", "\\]")):
            if text.startswith(opening) and text.endswith(closing):
                text = text[2:-2]
    return text


def canonical(text: str) -> str:
    r"""Return a text in one spelling: no spacing, no ``\left``, no ``\text{}`` around it, and ``\frac`` for ``\dfrac``."""
    text = bare(text).replace("{,}", ",")
    text = re.sub(r"(?<=[0-9])\\[,!](?=[0-9]{3}(?![0-9]))", ",", text)
    text = FRACTION.sub(r"\\frac", SIZING.sub("", NO_DELIMITER.sub("", SPACING.sub(" ", text))))
    whole = TEXT.fullmatch(text.strip())
    if whole:
        text = whole[1]
    return INNER_SPACE.sub("", re.sub(r"\s+", " ", text)).strip()


def number(text: str) -> Decimal | None:
    """Return the exact value of a plain number, which may have thousands separators; None for any other text.

    ``text`` must be the result of :func:`canonical`.
    """
    return Decimal(text.replace(",", "")) if NUMBER.fullmatch(text) else None


def plain(text: str) -> str:
    r"""Return the text in the form that :mod:`aster.grading.grammar` reads: ASCII, without styling, box or leading phrase.

    A phrase is removed only if it states the answer (``the answer is``, ``Answer:``). ``at least 5`` is not changed, so it does
    not equal ``5``.
    """
    text = text.strip()
    while BOX.match(text):
        inner = extract_boxed(text)
        # Use the innermost box only if there is no text outside the boxes.
        if inner is None or text.rstrip("} ").rstrip() != text[: text.rfind(inner) + len(inner)].rstrip("} ").rstrip():
            break
        text = inner
    if not text.isascii():
        text = ROOT_SIGN.sub(lambda found: rf"\sqrt{{{found[1]}}}" if found[1] else r"\sqrt", text)
        text = HIGHS.sub(lambda found: f"^{{{found[0].translate(HIGH)}}}", text)
        text = LOWS.sub(lambda found: f"_{{{found[0].translate(LOW)}}}", text)
        text = text.translate(CHARACTERS)
    text = ENVIRONMENT.sub(" ", HIDDEN.sub(" ", text))
    text = re.sub(r"\\text\s*\{\s*\\([$%])\s*\}", r"\\\1", text).replace(r"\textdegree", r"^\circ ")
    text = re.sub(r"(?:\s|\\\\)+$", "", text)
    text = bare(text)
    for mark in ("**", "`", '"'):
        while len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            text = text[len(mark) : -len(mark)].strip()
    text = re.sub(r"(?<!\\)\$", " ", bare(text))
    text = UNDERSCORES.sub(
        lambda found: found[0].replace("_", ""), GROUPS.sub(",", text.replace(r",\!", ",").replace(r"\!", ""))
    )
    # Two spaces, because one space between digits is a thousands separator.
    text = SPACING.sub(" ", QUAD.sub("  ", text))
    text = NO_DELIMITER.sub(" ", text)
    text = FRACTION.sub(r"\\frac", STYLE.sub(" ", SIZING.sub(" ", text)))
    text = re.sub(r"\\text\s*\{\s*([.,;]?)\s*\}", lambda found: found[1] or "  ", text)
    before = None
    while text != before:
        before = text
        text = text.strip()
        whole = TEXT.fullmatch(text)
        if whole:
            text = whole[1].strip()
        if text.startswith("\\text"):
            # \text{The value of } x \text{ is } 7
            flat = TEXT.sub(r" \1 ", text).strip()
            text = flat if PHRASE.match(flat) else text
        phrase = PHRASE.match(text) or LEAD.match(text)
        # Only "answer", or a quantity that may be a name itself ("sum"), does not state the answer.
        if phrase and phrase.end() < len(text) and re.search(r"(?:is|are|was|equals|to|[:=,]|\s)\s*$", phrase[0]):
            text = text[phrase.end() :].strip()
        text = bare(text.rstrip(","))
    return text
