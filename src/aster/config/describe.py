"""A recipe for people: every field with its type, value, default and meaning."""

from __future__ import annotations

import enum
import json
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from pydantic.fields import FieldInfo

from aster.config import Section
from aster.config.recipe import Recipe

WIDTH = 110


def describe(recipe: Recipe) -> str:
    """Every field as ``path = value (type; default where the value is another)`` and below it its meaning."""
    return "\n".join(_section(recipe, Recipe(), ""))


def _section(section: Section, default: Section | None, prefix: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        path = prefix + name
        value = getattr(section, name)
        usual = getattr(default, name) if default is not None else field.get_default(call_default_factory=True)
        meaning = " ".join((field.description or "").replace("``", "").split())
        if isinstance(value, Section):
            yield f"\n{path}: {meaning}"
            yield from _section(value, usual, path + ".")
        elif isinstance(value, list) and value and isinstance(value[0], Section):
            yield f"\n{path}: a list, {len(value)} long. {meaning}"
            for index, item in enumerate(value):
                # An item's defaults are its type's: those of the default list are of other stages.
                yield from _section(item, None, f"{path}.{index}.")
            yield ""
        else:
            changed = "" if value == usual else f"; default {_value(usual)}"
            yield f"{path} = {_value(value)}   ({_type(field)}{changed})"
            yield from textwrap.wrap(meaning, WIDTH, initial_indent="    ", subsequent_indent="    ")


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, float) else f"{value:g}"


def _type(field: FieldInfo) -> str:
    limits = [text for item in field.metadata if (text := _limit(item))]
    return " ".join([_annotation(field.annotation), *limits])


def _limit(item: Any) -> str:
    """One constraint of a field (``annotated_types`` objects), as text."""
    for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
        if getattr(item, name, None) is not None:
            return f"{sign} {getattr(item, name):g}"
    return ""


def _annotation(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is Literal:
        return " | ".join(str(argument) for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_annotation(argument) for argument in arguments)
    if origin is typing.Annotated:
        return " ".join([_annotation(arguments[0]), *(text for item in arguments[1].metadata if (text := _limit(item)))])
    if origin is not None:
        return f"{origin.__name__}[{', '.join(_annotation(argument) for argument in arguments)}]"
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return " | ".join(str(member.value) for member in annotation)
    return annotation.__name__
