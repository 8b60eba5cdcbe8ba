"""The problems that a recipe names: the lab's, a file's, a data set's, or what a function of the user's gives."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aster.config import Problems
from aster.data.problems import choose_problems, load_problems, problems_of
from aster.doors import blame, load
from aster.environments.lab import generate
from aster.errors import UserError
from aster.seeds import derive
from aster.types import Problem

LAB = "lab"


def training_problems(settings: Problems, count: int, seed: int) -> list[Problem]:
    """``count`` training problems; of a file, a seeded choice, or all if it has fewer."""
    return _problems(settings, settings.train, "problems.train", count, seed)


def teaching_problems(settings: Problems, count: int, seed: int, first: int | None = None) -> list[Problem]:
    """Problems for the teacher: the training problems, unless the recipe names others. The choice of ``first`` is in them."""
    field = "problems.teach" if settings.teach else "problems.train"
    return _problems(settings, settings.teach or settings.train, field, count, derive(seed, "teach"), first)


def evaluation_problems(settings: Problems, count: int) -> list[Problem]:
    """Held-out problems. They are the same for every seed of a recipe, so that runs can be compared."""
    return _problems(settings, settings.evaluate, "problems.evaluate", count, 0)


def _problems(settings: Problems, source: str, field: str, count: int, seed: int, first: int | None = None) -> list[Problem]:
    if source == LAB:
        try:
            fewest, most = settings.levels
            # Those of a lower count come first.
            return generate(settings.families, (fewest, most), "test" if field == "problems.evaluate" else "train", count, seed)
        except ValueError as error:
            raise UserError(f"problems: {error}") from None
    columns = {str(name): column for name, column in settings.columns.items()}
    if ":" in source and not source.startswith("hf:"):
        found = problems_of(_rows(load(source, {}, field), field), source, settings.prompt_suffix, columns)
    else:
        found = load_problems(source, settings.prompt_suffix, columns)
    return choose_problems(found, count, seed, first)


def _rows(given: Any, field: str) -> Iterable[dict[str, Any] | Problem]:
    """The rows of what a user's name stands for: a function, a list of Problem or of dicts, or a pandas or polars data
    frame."""
    if callable(given):
        try:
            given = given()
        except Exception as error:
            raise UserError(f"{field}: {blame(error, 'a list of problems or of rows, or a data frame')}") from error
    if hasattr(given, "to_dicts"):  # polars
        return list(given.to_dicts())
    if hasattr(given, "to_dict") and hasattr(given, "columns"):  # pandas
        return list(given.to_dict("records"))
    rows = list(given) if isinstance(given, Iterable) else None
    if rows is None or not all(isinstance(row, dict | Problem) for row in rows):
        raise UserError(f"{field}: gave {type(given).__name__}; expected a list of Problem or of dicts, or a data frame")
    return rows
