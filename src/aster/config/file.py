"""Reads a recipe: YAML, dotted overrides, and a one-line error where something is wrong.

Overrides (``rl.steps=20``, ``sft.stages.0.epochs=2``) are applied before validation, so an override can set whatever the file
can set.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from aster.config import Section
from aster.config.recipe import Recipe
from aster.errors import UserError, one_line
from aster.recipes import locate


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and validate a recipe: a file, or the name of one that comes with ASTER (:func:`aster.recipes.locate`).
    Raises UserError with one line naming the file, the field and what to do."""
    path = locate(recipe)
    data = parse_recipe(read_recipe(path), path)
    for text in overrides:
        apply_override(data, text)
    return validate_recipe(data, str(path))


def read_recipe(path: Path) -> str:
    """The text of a recipe's file. Raises UserError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def parse_recipe(text: str, path: Path) -> dict[str, Any]:
    """The fields in a recipe's text, not validated. Raises UserError, which names ``path``, where it is not a YAML mapping."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not valid YAML: {one_line(getattr(error, 'problem', None) or error)}") from None
    except ValueError as error:  # such as the date 2026-13-01
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise UserError(f"{path}: a recipe must be a mapping of fields, but this is a {type(data).__name__}")
    return data


def validate_recipe(data: dict[str, Any], where: str) -> Recipe:
    """Validate parsed recipe data. Raises UserError, which begins with ``where``, the origin of the data."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error)}", field=_field_of(error)) from None


def apply_override(data: dict[str, Any], text: str) -> None:
    """Set ``a.b.0.c=VALUE`` (VALUE in YAML) in ``data``. A list item must exist. Sections, mappings and lists that the file
    does not set get their defaults first. Raises UserError where the override cannot be applied."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"override {text!r}: write it as field=value, for instance rl.steps=20")
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"override {text!r}: the value is not valid YAML") from None
    parts = key.split(".")
    node: Any = data
    default: Any = Recipe().model_dump(mode="json")
    for index, part in enumerate(parts[:-1]):
        default = _child(default, part)
        place: Any = _index(node, part, text) if isinstance(node, list) else part
        if isinstance(node, list) or node.get(part) is not None:
            node = node[place]
        else:
            node[place] = node = default if isinstance(default, dict | list) else {}
        if not isinstance(node, dict | list):
            raise UserError(
                f"override {text!r}: {'.'.join(parts[: index + 1])} is a value and has no field {parts[index + 1]!r}"
            )
    if isinstance(node, list):
        node[_index(node, parts[-1], text)] = parsed
    else:
        node[parts[-1]] = parsed


def _child(default: Any, part: str) -> Any:
    if isinstance(default, list):
        return default[int(part)] if part.isdecimal() and int(part) < len(default) else {}
    return default.get(part, {}) if isinstance(default, dict) else {}


def _index(node: list[Any], part: str, text: str) -> int:
    if not part.isdecimal() or int(part) >= len(node):
        items = f"it has items 0 to {len(node) - 1}" if node else "it is empty"
        raise UserError(f"override {text!r}: {part!r} is not an item of the list; {items}")
    return int(part)


def _explain(error: ValidationError) -> str:
    """The first problem of a ValidationError as one line."""
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        names = _fields_at(first["loc"][:-1])
        close = difflib.get_close_matches(str(first["loc"][-1]), names, n=1, cutoff=0.0)
        hint = f"; the nearest valid name is {close[0]!r}" if close else ""
        return f"unknown field {path!r}{hint}"
    if not path:
        return message
    if first["type"] == "value_error":  # from a section's own check: its message names the field
        return f"section {path!r}: {message}"
    return f"field {path!r}: {message} (got {_short(first.get('input'))})"


def _field_of(error: ValidationError) -> str:
    """The dotted path of the field in the message of :func:`_explain`."""
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"]]
    if first["type"] == "value_error":  # from a section's own check
        parts.append(first["msg"].removeprefix("Value error, ").partition(": ")[0])
    return ".".join(parts)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """The field names of the section at a location of the recipe."""
    section: Any = Recipe
    for part in location:
        if isinstance(part, str):
            section = section.model_fields[part].annotation
        section = _section_in(section)
    return list(section.model_fields)


def _section_in(annotation: Any) -> Any:
    """The Section class inside an annotation such as ``list[SftStage]``."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation
    for argument in typing.get_args(annotation):
        found = _section_in(argument)
        if isinstance(found, type) and issubclass(found, Section):
            return found
    return annotation
