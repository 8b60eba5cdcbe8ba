"""Reads the comments of a YAML file, each with the field it belongs to. PyYAML drops comments.

Lines that begin with ``##`` are written by ASTER itself (:mod:`aster.config.describe`) and are skipped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

OURS = "##"
"""The start of a comment that ASTER writes."""


@dataclass(frozen=True)
class Comments:
    """The comments of one file; a field is named by its dotted path, as in an override."""

    head: list[str] = field(default_factory=list)
    """The lines above the first field, with their ``#``."""
    above: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """The lines directly above a field."""
    beside: dict[str, str] = field(default_factory=dict)
    """The comment on a field's own line, after its value."""
    foot: list[str] = field(default_factory=list)
    """The lines below the last field."""

    def without(self, changed: list[str]) -> Comments:
        """The comments that still hold after the ``changed`` fields got other values. It drops the comments at these fields, at
        fields inside them and at sections around them."""

        def holds(path: str) -> bool:
            return not any(f"{path}.".startswith(f"{other}.") or f"{other}.".startswith(f"{path}.") for other in changed)

        above = {path: lines for path, lines in self.above.items() if holds(path)}
        return Comments(self.head, above, {path: text for path, text in self.beside.items() if holds(path)}, self.foot)


def read_comments(text: str) -> Comments:
    """The comments of a text, which must be valid YAML."""
    found = Comments()
    starts = dict(_starts(yaml.compose(text, yaml.SafeLoader), ""))
    ends, inside = _tokens(text)
    waiting: list[str] = []
    seen = ""
    for number, line in enumerate(text.splitlines()):
        rest = "" if number in inside else line[ends.get(number, 0) :].strip()
        comment = rest if rest.startswith("#") and not rest.startswith(OURS) else ""
        if number not in ends and number not in inside:
            waiting += [comment] if comment else []
            continue
        path = starts.get(number, seen)
        if waiting:
            (found.above[path] if seen else found.head).extend(waiting)
            waiting = []
        if comment:
            found.beside[path] = comment
        seen = path
    found.foot.extend(waiting)
    return found


def _starts(node: Any, path: str) -> Iterator[tuple[int, str]]:
    """For each line in which a field or an item begins, the line's number and the dotted path. Where several begin in one line,
    the outermost comes last, so a dictionary keeps that one."""
    if isinstance(node, yaml.MappingNode):
        parts = [(str(key.value), key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        parts = [(str(index), item, item) for index, item in enumerate(node.value)]
    else:
        return
    for name, first, value in reversed(parts):
        inner = f"{path}.{name}" if path else name
        yield from _starts(value, inner)
        yield first.start_mark.line, inner


def _tokens(text: str) -> tuple[dict[int, int], set[int]]:
    """For each line, the column at which its last token ends; and the lines that end inside a token, where a ``#`` is text."""
    ends: dict[int, int] = {}
    inside: set[int] = set()
    for token in yaml.scan(text, yaml.SafeLoader):
        start, end = token.start_mark, token.end_mark
        inside.update(range(start.line, end.line))
        if end.index > start.index and end.column:
            ends[end.line] = max(ends.get(end.line, 0), end.column)
    return ends, inside
