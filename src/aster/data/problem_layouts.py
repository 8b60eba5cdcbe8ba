r"""The layouts of the field's sets of problems, as a table: under which names their rows keep what.

A row is read with the first layout all of whose ``marks`` it has. Of the columns named for a thing the first counts that has a
value. A dotted name (``reward_model.ground_truth``) goes into a column of objects.
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
    """One layout. Each field but the first two names columns in the order in which they are looked at."""

    name: str
    marks: tuple[str, ...]
    """Columns that together tell the layout from others. Empty: any row."""
    prompt: tuple[str, ...] = ("prompt", "problem", "question")
    """A text, or chat messages (the last of the user counts)."""
    answer: tuple[str, ...] = ("answer", "expected_answer", "reward_model.ground_truth", "solution")
    """Of a column named ``solution`` the last ``\\boxed{}``."""
    id: tuple[str, ...] = ("id", "extra_info.index")
    source: tuple[str, ...] = ("data_source",)
    difficulty: tuple[str, ...] = ("difficulty", "level")
    """How hard, as the set says it: see :func:`difficulty_of`. What is kept is 0 (easy) to 1 (hard), or the set's own word."""
    pass_rate: tuple[str, ...] = ()
    """Columns with the share of attempts that succeed: 1 is easy."""
    fail_count: tuple[str, ...] = ()
    """Columns with the number of 16 attempts that fail."""
    topic: tuple[str, ...] = ("topic", "subject", "problem_type")
    unanswered: tuple[str, tuple[str, ...]] | None = None
    """A column and its values in rows whose answer nobody knows."""


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
        id=(),  # rows are solutions: many are of one problem
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
"""POLARIS writes the pass rate of its difficulty column as ``3/8``; a set with a text like ``hard`` there keeps its word."""

FIELDS = ("prompt", "answer", "id", "source", "difficulty", "topic")
"""What a map of the user's own may name."""

_FRACTION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*")


def layout_of(row: Row, columns: Mapping[str, str]) -> Layout:
    """The layout of a row, with the user's ``columns`` (what -> column) in the place of its own."""
    found = next(layout for layout in LAYOUTS if all(value_of(row, mark) is not None for mark in layout.marks))
    return mapped(found, columns) if columns else found


def mapped(layout: Layout, columns: Mapping[str, str]) -> Layout:
    """The layout with the user's columns. UserError where one is for something unknown."""
    unknown = sorted(set(columns) - set(FIELDS))
    if unknown:
        raise UserError(f"--columns: no field named {unknown[0]!r}; there are {', '.join(FIELDS)}")
    fields = {name: getattr(layout, name) for name in Layout.__slots__} | {name: (column,) for name, column in columns.items()}
    if "difficulty" in columns:
        fields |= {"pass_rate": (), "fail_count": ()}
    return Layout(**fields)


def value_of(row: Row, name: str) -> Any:
    """The value under a name, dotted or not; None where it is missing. A column's own name may have dots in it."""
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
    """``difficulty`` (0 easy to 1 hard, or the set's own word) and ``topic`` of a row, as far as its layout has them."""
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
    """How hard a row is: what its layout has of failures, pass rate or difficulty; None where that is nothing."""
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
    """A number, as such or written (``3/8``, ``0.5``)."""
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
