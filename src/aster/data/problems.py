r"""Read problems from ``.jsonl`` and ``.parquet`` files and from data sets of the Hugging Face hub.

The table :data:`aster.data.problem_layouts.LAYOUTS` says which column holds what in the common data sets. A map of the user's
own (``{"prompt": COLUMN, ...}``) overrides it. A row without an id gets a hash of its prompt as id; a row without a source
gets the name of the file or data set.

If a row has both a ``prompt`` and a ``problem``, the prompt is used: it is what the authors of the data send to a model, so it
includes their request for a ``\boxed{}``. DAPO-Math-17k's prompts ask for a last line ``Answer: ...`` instead, which the
verifier does not read. That exact frame (:data:`DAPO_HEAD`, :data:`DAPO_TAIL`) is removed and replaced by the suffix, or by
:data:`BOX_REQUEST` if no suffix is given.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aster.data.problem_layouts import Layout, layout_of, metadata_of, value_of
from aster.data.problem_rows import HUB, rows_of, stem_of
from aster.errors import UserError
from aster.grading.boxed import extract_boxed
from aster.jsonl import kind_of
from aster.seeds import derive
from aster.types import Problem

DAPO_HEAD = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem."
)
DAPO_TAIL = 'Remember to put your answer on its own line after "Answer:".'
BOX_REQUEST = "Please reason step by step, and put your final answer within \\boxed{}."

NO_COLUMNS: Mapping[str, str] = {}


def load_problems(path: str | Path, prompt_suffix: str = "", columns: Mapping[str, str] = NO_COLUMNS) -> list[Problem]:
    """Read the problems of a ``.jsonl`` or ``.parquet`` file or of ``hf:OWNER/NAME[@CONFIG][:SPLIT]``, in order.

    ``prompt_suffix`` is appended to each prompt that does not end with it already. ``columns`` names the columns of
    ``prompt``, ``answer``, ``id``, ``source``, ``difficulty`` and ``topic``. Two kinds of rows are dropped: rows that repeat an
    earlier one (same id, prompt and answer), and rows that their layout marks as having no known answer. An id that is only a
    number is usually a row number, and would be the same in another file, so it becomes ``FILE-NUMBER``.

    Raises UserError if the source is missing, broken, empty or of an unknown type, if a row has no prompt or no answer, or if
    two different problems have the same id.
    """
    return _distinct(str(path), iterate_problems(path, prompt_suffix, columns))


def problems_of(
    rows: Iterable[dict[str, Any] | Problem], name: str, prompt_suffix: str = "", columns: Mapping[str, str] = NO_COLUMNS
) -> list[Problem]:
    """Return the problems of rows in memory, by the rules of :func:`load_problems`.

    ``name`` replaces the file's name in errors and ids. A row that is a Problem is used unchanged.
    """
    return _distinct(
        name, _of_rows(((f"row {number}", row) for number, row in enumerate(rows, 1)), name, prompt_suffix, columns)
    )


def _distinct(path: str, found: Iterable[tuple[str, Problem]]) -> list[Problem]:
    problems: dict[str, tuple[Problem, str]] = {}
    rows = 0
    for place, problem in found:
        rows += 1
        if problem.id not in problems:
            problems[problem.id] = problem, place
            continue
        first, first_place = problems[problem.id]
        if (first.prompt, first.answer) != (problem.prompt, problem.answer):
            raise UserError(
                f"{path}: {first_place} and {place} have the same id {problem.id!r} but another problem or answer; "
                "give them different ids or delete one"
            )
    if not rows:
        raise UserError(f"{path}: no problems in it")
    return [problem for problem, _ in problems.values()]


def choose_problems(problems: list[Problem], count: int, seed: int, first: int | None = None) -> list[Problem]:
    """Choose ``count`` problems at random by ``seed`` and return them in their order; return all if there are no more.

    With ``first``, a larger choice contains the smaller ones: calls with the same ``seed`` and ``first`` and a growing
    ``count`` (from ``first`` on) only add problems.
    """
    if len(problems) <= count:
        return problems
    indices, drawing = range(len(problems)), derive(seed, "problems")
    chosen = set(random.Random(drawing).sample(indices, count if first is None else min(first, count)))
    if len(chosen) < count:
        # random.sample uses different algorithms for small and large samples, so a larger sample need not contain a smaller
        # one. Sampling all indices gives one fixed order to take the additional ones from.
        others = [index for index in random.Random(drawing).sample(indices, len(problems)) if index not in chosen]
        chosen.update(others[: count - len(chosen)])
    return [problem for index, problem in enumerate(problems) if index in chosen]


def iterate_problems(
    path: str | Path,
    prompt_suffix: str = "",
    columns: Mapping[str, str] = NO_COLUMNS,
    fault: Callable[[str], None] | None = None,
) -> Iterator[tuple[str, Problem]]:
    """Yield each row's problem, repeated ones too, in order, with the row's place in words (``line 3``).

    A row without a prompt or an answer raises UserError; if ``fault`` is given, the row is skipped and ``fault`` is called with
    the message instead. Rows that their layout marks as having no known answer are always skipped, and also reported to
    ``fault``.
    """
    yield from _of_rows(rows_of(str(path)), str(path), prompt_suffix, columns, fault)


def _of_rows(
    rows: Iterable[tuple[str, dict[str, Any] | Problem]],
    path: str,
    prompt_suffix: str,
    columns: Mapping[str, str],
    fault: Callable[[str], None] | None = None,
) -> Iterator[tuple[str, Problem]]:
    for place, row in rows:
        if isinstance(row, Problem):
            yield place, row
            continue
        where = f"{path}, {place}"
        layout = layout_of(row, columns)
        if layout.unanswered is not None and value_of(row, layout.unanswered[0]) in layout.unanswered[1]:
            if fault is not None:
                fault(f"{where}: no known answer ({value_of(row, layout.unanswered[0])})")
            continue
        try:
            problem = _problem(where, stem_of(path), row, layout, prompt_suffix)
        except UserError as error:
            if fault is None:
                raise
            fault(str(error))
            continue
        yield place, problem


def _problem(where: str, stem: str, row: dict[str, Any], layout: Layout, suffix: str) -> Problem:
    found = ((name, value_of(row, name)) for name in layout.prompt)
    prompt = next((text for name, value in found if (text := _prompt_text(where, name, value)) is not None), None)
    if prompt is None:
        names = ", ".join(layout.prompt)
        raise UserError(f"{where}: no prompt: none of the columns {names} holds text; {_columns(row)}")
    found = ((name, value_of(row, name)) for name in layout.answer)
    answer = next((text for name, value in found if (text := _answer_text(where, name, value)) is not None), None)
    if answer is None:
        names = ", ".join(name for name in layout.answer if name != "solution")
        boxed = ", and there is no solution with a \\boxed{}" if "solution" in layout.answer else ""
        raise UserError(f"{where}: no answer: none of the columns {names} holds a value{boxed}; {_columns(row)}")
    sources = (value_of(row, name) for name in layout.source)
    return Problem(
        id=_id(stem, row, layout, prompt),
        prompt=_with_request(prompt, suffix),
        answer=answer,
        source=next((source for source in sources if isinstance(source, str) and source), stem),
        metadata=metadata_of(row, layout),
    )


def _prompt_text(where: str, name: str, value: Any) -> str | None:
    """Return the text of a prompt column; of chat messages, the last message of the user. None if it is empty."""
    if isinstance(value, list):
        users = [message for message in value if isinstance(message, dict) and message.get("role") == "user"]
        if value and not users:
            raise UserError(f"{where}: {name}: the list has no user message {{'role': 'user', 'content': TEXT}}")
        value = users[-1].get("content") if users else None
        name = f"{name}: the user's message"
    if value is None:
        return None
    if not isinstance(value, str):
        raise UserError(f"{where}: {name}: is a {kind_of(value)}; it must be a text")
    return value.strip() or None


def _answer_text(where: str, name: str, value: Any) -> str | None:
    r"""Return the text of an answer column, or None if it is empty.

    In the column ``solution`` only the content of the last ``\boxed{}`` is the answer. Skywork-OR1 writes the answer as a JSON
    list with one item.
    """
    if isinstance(value, str) and value.strip().startswith('["'):
        # A text may begin like a list and not be one.
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    # In a column of integers with gaps, data frames store 70.0 for 70 and NaN for a gap.
    if isinstance(value, float):
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{where}: {name}: is a {kind_of(value)}; it must be a text or a number")
    text = str(value).strip()
    boxed = extract_boxed(text)
    if name == "solution":
        return boxed
    return boxed or text or None


def _with_request(prompt: str, suffix: str) -> str:
    """Return the prompt without DAPO's frame and with the suffix."""
    if prompt.startswith(DAPO_HEAD) and prompt.endswith(DAPO_TAIL):
        prompt = prompt[len(DAPO_HEAD) : -len(DAPO_TAIL)].strip()
        suffix = suffix or f"\n{BOX_REQUEST}"
    return prompt if prompt.endswith(suffix.strip()) else prompt + suffix


def _id(stem: str, row: dict[str, Any], layout: Layout, prompt: str) -> str:
    for name in layout.id:
        value = value_of(row, name)
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
            text = str(value).strip()
            return f"{stem}-{text}" if text.isdecimal() else text
    return digest(prompt)


def digest(text: str, size: int = 8) -> str:
    """Return a hash of a text in hex: ``size`` bytes, two characters each."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).hexdigest()


def _columns(row: dict[str, Any]) -> str:
    return f"the row has {', '.join(map(str, row)) or 'no columns'}"


__all__ = [
    "BOX_REQUEST",
    "DAPO_HEAD",
    "DAPO_TAIL",
    "HUB",
    "choose_problems",
    "digest",
    "iterate_problems",
    "load_problems",
    "problems_of",
]
