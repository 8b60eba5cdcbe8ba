"""Replace characters in code (not in strings) that only look like Python's: other spaces, quotes, minus signs, and so on."""

from __future__ import annotations

import re
import unicodedata

from aster_sandbox.reading import Reader, end_of_string

Lines = list[str]
_SPACES = "\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
_UNSEEN = (
    "\xad\u180e\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e"
    "\u2060\u2061\u2062\u2063\u2064\u2066\u2067\u2068\u2069\ufeff"
)
_CLEAN = str.maketrans(dict.fromkeys(_SPACES, " ") | dict.fromkeys(_UNSEEN, ""))
_LOOKALIKES = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63", "-")
    | {"×": "*", "÷": "/", "≤": "<=", "≥": ">=", "≠": "!="}
    | {
        wide: unicodedata.normalize("NFKC", wide)
        for wide in map(chr, range(0xFF01, 0xFF5F))
        if not unicodedata.normalize("NFKC", wide).isalnum()
    }
)
_CLOSED_BY = {
    "“": "”“",
    "”": "”",
    "„": "”“",
    "‟": "”",
    "«": "»",
    "»": "«",
    "‘": "’",
    "’": "’",
    "‚": "’‘",
    "‛": "’",
}
_DOUBLE = "“”„‟«»"


def clean(lines: Lines) -> Lines | None:
    """Replace other kinds of spaces with plain ones, and remove characters without width. None if nothing changes."""
    return _translated(lines, _CLEAN)


def replace_lookalikes(lines: Lines) -> Lines | None:
    """Replace minus and comparison signs and full-width punctuation with Python's characters. None if nothing changes."""
    return _translated(lines, _LOOKALIKES)


def _translated(lines: Lines, table: dict[int, str]) -> Lines | None:
    reader = Reader()
    meant = ["".join(text.translate(table) if code else text for code, text in reader.pieces(line)) for line in lines]
    return meant if meant != lines else None


def straighten_quotes(lines: Lines) -> Lines | None:
    """Replace typographic quotes around strings with straight ones; the strings' content stays. None if nothing changes."""
    text = "\n".join(lines)
    if not any(quote in text for quote in _CLOSED_BY):
        return None
    meant: list[str] = []
    place = 0
    while place < len(text):
        character = text[place]
        if character == "#":
            end = _line_end(text, place)
        elif character in "'\"":
            quote = character * 3 if text.startswith(character * 3, place) else character
            end = end_of_string(text, place + len(quote), quote)
            if end < 0 or (len(quote) == 1 and "\n" in text[place:end].replace("\\\n", "")):
                end = _line_end(text, place)
        elif character in _CLOSED_BY:
            string, end = _string(text, place)
            meant.append(string)
            place = end
            continue
        else:
            end = place + 1
        meant.append(text[place:end])
        place = end
    result = "".join(meant).split("\n")
    return result if result != lines else None


def _string(text: str, start: int) -> tuple[str, int]:
    """The string that the typographic quote at ``start`` opens, in straight quotes, and the index of its end. If it opens none,
    the quote itself."""
    opening = text[start]
    quote = '"' if opening in _DOUBLE else "'"
    closing = f"[{_CLOSED_BY[opening]}]"
    if text.startswith(opening * 3, start):
        found = re.compile(closing + "{3}").search(text, start + 3)
        if found is not None:
            return f"{quote * 3}{text[start + 3 : found.start()]}{quote * 3}", found.end()
    # A single closing quote is not followed by a letter; an apostrophe is.
    found = re.compile(closing + (r"(?!\w)" if quote == "'" else "")).search(text, start + 1, _line_end(text, start))
    if found is None:
        return opening, start + 1
    content = re.sub(rf"(?<!\\){quote}", rf"\\{quote}", text[start + 1 : found.start()])
    return f"{quote}{content}{quote}", found.end()


def _line_end(text: str, place: int) -> int:
    end = text.find("\n", place)
    return len(text) if end < 0 else end
