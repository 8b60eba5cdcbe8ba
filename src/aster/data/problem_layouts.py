r"""A table of the common problem data sets: which columns hold the prompt, the answer and the rest.

A row is read with the first layout whose ``marks`` it all has. Where a layout names several columns for one field, the first
column with a value is used. A dotted name (``reward_model.ground_truth``) names a key inside a column of objects.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aster.errors import UserError

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Layout:
    """One layout. Every field after ``marks`` names columns, in the order in which they are tried."""

    name: str
    marks: tuple[str, ...]
    """Columns that identify the layout. Empty: the layout fits any row."""
    prompt: tuple[str, ...] = ("prompt", "problem", "question")
    """Columns with a text, or with chat messages (then the last user message is the prompt)."""
    answer: tuple[str, ...] = ("answer", "expected_answer", "reward_model.ground_truth", "solution")
    """In a column named ``solution`` the answer is the content of the last ``\\boxed{}``."""
    id: tuple[str, ...] = ("id", "extra_info.index")
    source: tuple[str, ...] = ("data_source",)
    difficulty: tuple[str, ...] = ("difficulty", "level")
    """Columns with the data set's own difficulty; see :func:`difficulty_of`."""
    pass_rate: tuple[str, ...] = ()
    """Columns with the share of attempts that succeed (1 is easy)."""
    fail_count: tuple[str, ...] = ()
    """Columns with the number of failed attempts out of 16."""
    topic: tuple[str, ...] = ("topic", "subject", "problem_type")
    unanswered: tuple[str, tuple[str, ...]] | None = None
    """A column, and the values it has in rows without a known answer."""


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "DAPO-Math-17k, processed",
        marks=("prompt", "solution", "source_prompt"),
        answer=("reward_model.ground_truth", "answer", "solution"),
        id=("extra_info.index",),
    ),
    Layout(
        "Skywork-OR1-RL-Data",
        marks=("prompt", "reward_model.ground_truth", "extra_info.model_difficulty"),
        answer=("reward_model.ground_truth",),
        fail_count=(
            "extra_info.model_difficulty.DeepSeek-R1-Distill-Qwen-7B",
            "extra_info.model_difficulty.DeepSeek-R1-Distill-Qwen-32B",
            "extra_info.model_difficulty.DeepSeek-R1-Distill-Qwen-1.5B",
        ),
    ),
    Layout(
        "OpenMathReasoning",
        marks=("problem", "problem_type", "generated_solution"),
        prompt=("problem",),
        answer=("expected_answer",),
        id=(),  # a row is a solution, and a problem has many
        source=("problem_source",),
        pass_rate=("pass_rate_72b_tir",),
        topic=("topic",),
        unanswered=("problem_type", ("no_answer_extracted", "converted_proof")),
    ),
    Layout("MathArena (AIME, HMMT, ...)", marks=("problem_idx", "problem"), id=("id", "extra_info.index", "problem_idx")),
    Layout("POLARIS", marks=("problem", "answer", "difficulty"), pass_rate=("difficulty",), difficulty=()),
    Layout("verl (DAPO-Math-17k, ...)", marks=("data_source", "prompt", "reward_model.ground_truth", "extra_info")),
    Layout("AIME, BeyondAIME, MATH, any other", marks=()),
)
"""POLARIS writes the pass rate in its difficulty column as ``3/8``. A word there (``hard``) is kept as it is."""

FIELDS = ("prompt", "answer", "id", "source", "difficulty", "topic")
"""Fields that the user's own column map may name."""

_FRACTION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*")


def layout_of(row: Row, columns: Mapping[str, str]) -> Layout:
    """Return the layout of a row, with its columns replaced by the user's ``columns`` (field -> column)."""
    found = next(layout for layout in LAYOUTS if all(value_of(row, mark) is not None for mark in layout.marks))
    return mapped(found, columns) if columns else found


def mapped(layout: Layout, columns: Mapping[str, str]) -> Layout:
    """Return the layout with the user's columns. Raises UserError for an unknown field."""
    unknown = sorted(set(columns) - set(FIELDS))
    if unknown:
        raise UserError(f"--columns: no field named {unknown[0]!r}; the fields are {', '.join(FIELDS)}")
    fields = {name: getattr(layout, name) for name in Layout.__slots__} | {name: (column,) for name, column in columns.items()}
    if "difficulty" in columns:
        fields |= {"pass_rate": (), "fail_count": ()}
    return Layout(**fields)


def value_of(row: Row, name: str) -> Any:
    """Return the value under a name, which may be dotted; None if there is none. A column's own name may contain dots."""
    if name in row:
        return row[name]
    value: Any = row
    rest = name
    while isinstance(value, Mapping) and rest:
        if rest in value:
            return value[rest]
        head, _, rest = rest.partition(".")
        value = value.get(head)
    return None


def metadata_of(row: Row, layout: Layout) -> dict[str, Any]:
    """Return ``difficulty`` (0 easy to 1 hard, or the data set's own value) and ``topic`` of a row, where it has them."""
    found: dict[str, Any] = {}
    difficulty = difficulty_of(row, layout)
    if difficulty is not None:
        found["difficulty"] = difficulty
    for name in layout.topic:
        topic = value_of(row, name)
        if isinstance(topic, list):
            topic = topic[0] if topic else None
        if isinstance(topic, str) and topic.strip():
            found["topic"] = topic.strip()
            break
    return found


def difficulty_of(row: Row, layout: Layout) -> float | str | None:
    """Return a row's difficulty from its failures, its pass rate or its own difficulty column; None if it has none of them.

    Failures and pass rates become a number from 0 (easy) to 1 (hard). The set's own number or word is kept as it is.
    """
    for name in layout.fail_count:
        if (failed := _number(value_of(row, name))) is not None:
            return round(failed / 16, 4)
    for name in layout.pass_rate:
        value = value_of(row, name)
        if (rate := _number(value)) is not None and 0 <= rate <= 1:
            return round(1 - rate, 4)
        if isinstance(value, str) and value.strip() and value.strip().lower() != "n/a":
            return value.strip()
    for name in layout.difficulty:
        value = value_of(row, name)
        if (number := _number(value)) is not None:
            return number
        if isinstance(value, str) and value.strip():
            return value.strip()
    return None


def _number(value: Any) -> float | None:
    """Return a number, or the number that a text such as ``3/8`` or ``0.5`` spells; else None."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        if match := _FRACTION.fullmatch(value):
            return float(match[1]) / float(match[2]) if float(match[2]) else None
        try:
            return _number(float(value))
        except ValueError:
            return None
    return None
