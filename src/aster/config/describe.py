"""Prints a recipe: every field with its type, value, default and meaning, as a list or as YAML that can be run."""

from __future__ import annotations

import enum
import json
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

import yaml
from pydantic.fields import FieldInfo

from aster.config import Section
from aster.config.comments import OURS, Comments
from aster.config.recipe import Recipe

WIDTH = 110


def describe(recipe: Recipe) -> str:
    """Every field as ``path = value (type; default where it differs from the value)``, with its meaning below it."""
    return "\n".join(_section(recipe, Recipe(), ""))


def _section(section: Section, default: Section | None, prefix: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        path = prefix + name
        value = getattr(section, name)
        usual = getattr(default, name) if default is not None else field.get_default(call_default_factory=True)
        meaning = _meaning(field)
        if isinstance(value, Section):
            yield f"\n{path}: {meaning}"
            yield from _section(value, usual, path + ".")
        elif isinstance(value, list) and value and isinstance(value[0], Section):
            yield f"\n{path}: a list, {len(value)} long. {meaning}"
            for index, item in enumerate(value):
                # Compare an item with the defaults of its type. The items of the default list are for other stages.
                yield from _section(item, None, f"{path}.{index}.")
            yield ""
        else:
            yield f"{path} = {_value(value)}   ({_kind(field, value, usual)})"
            yield from textwrap.wrap(meaning, WIDTH, initial_indent="    ", subsequent_indent="    ")


def to_yaml(recipe: Recipe, comments: Comments | None = None) -> str:
    """A recipe as YAML with every field. Lines that begin with ``##`` above each field give its meaning, its type, and its
    default where it differs from the value. ``comments`` are put back at their fields."""
    comments = comments or Comments()
    lines = [*comments.head, f"{OURS} Every field, with its meaning and its type above it."]
    lines += _yaml_section(recipe, Recipe(), recipe.model_dump(mode="json"), "", comments, meanings=True)
    return "\n".join([*lines, *comments.foot]) + "\n"


def _yaml_section(
    section: Section, default: Section | None, data: dict[str, Any], prefix: str, comments: Comments, *, meanings: bool
) -> Iterator[str]:
    """The lines of a section, without indentation. ``data``: its fields as YAML values. ``prefix``: the part of their dotted
    paths before their names."""
    for name, field in type(section).model_fields.items():
        path, value = prefix + name, getattr(section, name)
        usual = getattr(default, name) if default is not None else field.get_default(call_default_factory=True)
        items = value if isinstance(value, list) and value and isinstance(value[0], Section) else None
        if not prefix:
            yield ""
        if meanings:
            plain = items is None and not isinstance(value, Section)
            meaning = f"{_meaning(field)} ({_kind(field, value, usual)})" if plain else _meaning(field)
            # Not at hyphens: 1e-6 is one word.
            yield from textwrap.wrap(
                meaning, WIDTH, initial_indent=f"{OURS} ", subsequent_indent=f"{OURS} ", break_on_hyphens=False
            )
        if isinstance(value, Section):
            yield from comments.above.get(path, [])
            yield _with(f"{name}:", comments.beside.get(path))
            inner = _yaml_section(value, usual, data[name], f"{path}.", comments, meanings=meanings)
            yield from textwrap.indent("\n".join(inner), "  ").split("\n")
        elif items is not None:
            yield from comments.above.get(path, [])
            yield _with(f"{name}:", comments.beside.get(path))
            for index, item in enumerate(items):
                place = f"{path}.{index}"
                inner = _yaml_section(item, None, data[name][index], f"{place}.", comments, meanings=meanings and not index)
                notes = [*comments.above.get(place, []), *([comments.beside[place]] if place in comments.beside else [])]
                yield from _item([*notes, *inner])
        else:
            # The value is written on one line, so comments inside a value of several lines go to that line.
            below = [each for each in (*comments.above, *comments.beside) if each == path or each.startswith(f"{path}.")]
            for each in dict.fromkeys(below):
                yield from comments.above.get(each, [])
            beside = [comments.beside[each] for each in dict.fromkeys(below) if each in comments.beside]
            yield _with(f"{name}: {_flow(data[name])}", "  ".join(beside))


def _item(lines: list[str]) -> list[str]:
    """The lines of a list's item. The dash goes before the first field; comments above that field stay above it."""
    first = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    return [f"  {'- ' if index == first else '' if index < first else '  '}{line}" for index, line in enumerate(lines)]


def _with(line: str, comment: str | None) -> str:
    return f"{line}  {comment}" if comment else line


def _flow(value: Any) -> str:
    """A value without sections, as one line of YAML."""

    def dump(style: str | None) -> str:
        # Inside a list, because YAML ends a document that is only a scalar with dots.
        text = yaml.safe_dump(
            [value], default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False, default_style=style
        )
        return text.strip()[1:-1]

    text = dump(None)
    return text if len(text.splitlines()) <= 1 else dump('"')  # a text with line breaks: double quotes escape them


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").replace("``", "").split())


def _kind(field: FieldInfo, value: Any, usual: Any) -> str:
    """The type, and the default where it differs from the value."""
    return _type(field) if value == usual else f"{_type(field)}; default {_value(usual)}"


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
