"""Extract the final answer of a text: the content of its last box."""

from __future__ import annotations

import re

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def extract_boxed(text: str) -> str | None:
    r"""Return the content of the last ``\boxed{...}`` (or ``\fbox{...}``) of a text, without surrounding white space.

    Braces are balanced as in LaTeX: ``\{`` and ``\}`` are printed characters and do not group. Of nested boxes, the innermost
    counts, because it opens last. Returns None if there is no box or the last one is not closed: a text that was cut off inside
    a box has no answer, even if it has an earlier box.

    Pass only text that the policy wrote. Otherwise the output of a tool could count as an answer.
    """
    start = None
    for match in BOX.finditer(text):
        start = match.end()
    if start is None:
        return None
    depth = 1
    position = start
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[start:position].strip()
        position += 1
    return None
