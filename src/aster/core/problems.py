r"""Problems from files: ``.jsonl`` and ``.parquet``, in the layouts the field uses.

| what | taken from the first of these that a row has |
|---|---|
| prompt | ``prompt`` (a text, or chat messages: the last of the user), ``problem``, ``question`` |
| answer | ``answer``, ``expected_answer``, ``reward_model.ground_truth``, the last ``\boxed{}`` of ``solution`` |
| id | ``id``, ``extra_info.index``, else a hash of the prompt |
| source | ``data_source``, else the file's name |

Where a row has a ``prompt`` and a ``problem`` the prompt wins: it is what the data's authors send to a model, and holds
their request for a ``\boxed{}`` besides the problem. DAPO-Math-17k's own request is another: it asks for a last line
``Answer: ...``, which the verifier would not find. Where exactly that frame stands around a prompt it is taken off, and
unless a suffix is given, :data:`BOX_REQUEST` takes its place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aster.core.boxed import extract_boxed
from aster.core.errors import UserError
from aster.core.seeds import derive
from aster.core.types import Problem

PROMPTS = ("prompt", "problem", "question")
ANSWERS = ("answer", "expected_answer", "reward_model.ground_truth", "solution")

DAPO_HEAD = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem."
)
DAPO_TAIL = 'Remember to put your answer on its own line after "Answer:".'
BOX_REQUEST = "Please reason step by step, and put your final answer within \\boxed{}."

Row = dict[str, Any]


def load_problems(path: str | Path, prompt_suffix: str = "") -> list[Problem]:
    """Read the problems of a ``.jsonl`` or ``.parquet`` file, in its order. See the module for the columns.

    ``prompt_suffix`` is appended to each prompt as it is, except where the prompt ends with it already. Rows that repeat an
    earlier one (same id, prompt and answer) are dropped. An id that is a bare number is a row number more often than a name,
    and would join the problems of one file with those of another: it becomes ``FILE-NUMBER``.

    UserError for a file that is missing, broken, empty or of another kind, for a row without a prompt or an answer, and for
    an id that stands for two different problems.
    """
    path = Path(path)
    problems: dict[str, tuple[Problem, str]] = {}
    rows = 0
    for place, row in _rows(path):
        rows += 1
        problem = _problem(path, place, row, prompt_suffix)
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


def choose_problems(problems: list[Problem], count: int, seed: int) -> list[Problem]:
    """A seeded choice of ``count`` problems, in their order; all, if there are no more."""
    if len(problems) <= count:
        return problems
    chosen = set(random.Random(derive(seed, "problems")).sample(range(len(problems)), count))
    return [problem for index, problem in enumerate(problems) if index in chosen]


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    """The rows, each with the words that say where it stands."""
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder, not a file of problems' if path.is_dir() else 'no such file'}")
    if path.suffix == ".jsonl":
        return _jsonl_rows(path)
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    raise UserError(
        f"{path}: problems are read from .jsonl and .parquet files, not from {path.suffix or 'files without ending'}"
    )


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Row]]:
    number = 0
    try:
        with open(path, encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise UserError(f"{path}, line {number}: holds a JSON {_kind(row)}; every line must be an object {{...}}")
                yield f"line {number}", row
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {number}: not JSON: {error.msg} at column {error.colno}") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path}, line {number}: not JSON that can be read: {_one_line(error)}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    # Costs 0.2 s and a good deal of memory, and most runs read no parquet.
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as parquet: {_one_line(error)}") from None


def _problem(path: Path, place: str, row: Row, suffix: str) -> Problem:
    where = f"{path}, {place}"
    prompt = next((text for name in PROMPTS if (text := _prompt_text(where, name, _get(row, name))) is not None), None)
    if prompt is None:
        raise UserError(f"{where}: no prompt: none of {', '.join(PROMPTS)} is there with a text in it; {_columns(row)}")
    answer = next((text for name in ANSWERS if (text := _answer_text(where, name, _get(row, name))) is not None), None)
    if answer is None:
        raise UserError(
            f"{where}: no answer: none of {', '.join(ANSWERS[:-1])} is there with a value, nor a solution with a \\boxed{{}}; "
            f"{_columns(row)}"
        )
    source = _get(row, "data_source")
    return Problem(
        id=_id(path, row, prompt),
        prompt=_with_request(prompt, suffix),
        answer=answer,
        source=source if isinstance(source, str) and source else path.stem,
    )


def _get(row: Row, name: str) -> Any:
    """The value under a dotted name; None where it is missing."""
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _prompt_text(where: str, name: str, value: Any) -> str | None:
    """The text of a prompt column: of chat messages, what the user said last. None where it is empty."""
    if isinstance(value, list):
        users = [message for message in value if isinstance(message, dict) and message.get("role") == "user"]
        if value and not users:
            raise UserError(
                f"{where}: {name}: a list without a user's message; it needs one {{'role': 'user', 'content': TEXT}}"
            )
        value = users[-1].get("content") if users else None
        name = f"{name}: the user's message"
    if value is None:
        return None
    if not isinstance(value, str):
        raise UserError(f"{where}: {name}: is a {_kind(value)}; it must be a text")
    return value.strip() or None


def _answer_text(where: str, name: str, value: Any) -> str | None:
    r"""The text of an answer column. A solution's is in its ``\boxed{}``; Skywork-OR1 has a JSON list of one answer."""
    if isinstance(value, str) and value.strip().startswith('["'):
        # Not every text that begins like a list is one.
        with contextlib.suppress(json.JSONDecodeError):
            value = json.loads(value)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    # Where a column of whole numbers has gaps, data frames store 70.0 for 70 and not-a-number for a gap.
    if isinstance(value, float):
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{where}: {name}: is a {_kind(value)}; it must be a text or a number")
    text = str(value).strip()
    boxed = extract_boxed(text)
    if name == "solution":
        return boxed
    return boxed or text or None


def _with_request(prompt: str, suffix: str) -> str:
    """The prompt without DAPO's frame and with the suffix."""
    if prompt.startswith(DAPO_HEAD) and prompt.endswith(DAPO_TAIL):
        prompt = prompt[len(DAPO_HEAD) : -len(DAPO_TAIL)].strip()
        suffix = suffix or f"\n{BOX_REQUEST}"
    return prompt if prompt.endswith(suffix.strip()) else prompt + suffix


def _id(path: Path, row: Row, prompt: str) -> str:
    for name in ("id", "extra_info.index"):
        value = _get(row, name)
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
            text = str(value).strip()
            return f"{path.stem}-{text}" if text.isdecimal() else text
    return hashlib.blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _columns(row: Row) -> str:
    return f"the row has {', '.join(map(str, row)) or 'no columns'}"


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {"dict": "object", "str": "text", "int": "number", "float": "number", "bool": "truth value", "NoneType": "null"}
    return names.get(type(value).__name__, type(value).__name__)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
