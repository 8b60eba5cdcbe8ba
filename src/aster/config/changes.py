"""Which fields of a recipe may change when a run or an evaluation is continued. Each field declares it; this module compares.

A field affects the results unless it is marked ``Annotated[..., FREE]`` (it says where or how fast things run) or
``Annotated[..., Raised(...)]`` (a higher value only adds to the results that exist).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aster.config.section import Free, Raised, Section


def deciding(section: Section) -> dict[str, Any]:
    """The fields that affect the results, as JSON values."""
    found: dict[str, Any] = {}
    dumped = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        if any(isinstance(mark, Free) and mark.holds(section) for mark in field.metadata):
            continue
        value = getattr(section, name)
        found[name] = deciding(value) if isinstance(value, Section) else dumped[name]
    return found


def first_change(old: Section, new: Section) -> str | None:
    """The dotted path of the first field that affects the results and differs, or None."""
    return first_difference(deciding(old), deciding(new))


def first_lowered(old: Section, new: Section) -> tuple[str, Any, Any] | None:
    """The first field that was lowered although it may only be raised, or None: its dotted path, its old and its new value."""
    return next(_lowered(old, new, ""), None)


def _lowered(old: Section, new: Section, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    for name, field in type(new).model_fields.items():
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(before, Section) and isinstance(after, Section):
            yield from _lowered(before, after, f"{prefix}{name}.")
        elif any(isinstance(mark, Raised) and mark.holds(new) for mark in field.metadata) and after < before:
            yield f"{prefix}{name}", before, after


def first_difference(old: Any, new: Any, path: str = "") -> str | None:
    """The dotted path of the first field in which two JSON values differ, or None."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old | new:
            found = first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
            if found:
                return found
        return None
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return first_difference(dict(enumerate(old)), dict(enumerate(new)), path)
    return None if old == new else path
