"""The final answer in a text: what stands in its last box."""

from __future__ import annotations

import re

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def extract_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` (or ``\fbox{...}``) of a text, without white space around it.

    Braces are balanced as in LaTeX: ``\{`` and ``\}`` are printed characters and group nothing. Of boxes within boxes the
    last one to open counts, which is the innermost. None where there is no box, or where the last one is never closed: a
    text cut off inside a box gives no answer, and an earlier box is not what it was about to say.

    Give it what the policy wrote alone: tool output must not count as an answer.
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
