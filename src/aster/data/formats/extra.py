"""The column ``aster``: it keeps what a layout has no place for, so that rows can be read back without loss.

The column holds the transcript's fields other than its dialogue, and the token counts, statuses and seconds of its steps and
calls. Some dialogues do not fit into a layout at all: half a surrogate pair in Parquet, or a ``</think>`` inside the thinking
if the layout writes thinking into the text. So every row is read back when it is written. If the result differs, the column
also holds the whole transcript, with a hash of the row. If the row was changed after that, the hash differs, and the row's own
text is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from aster.data.formats.base import Unreadable
from aster.data.problems import digest
from aster.jsonl import Row
from aster.transcript import Step, Transcript
from aster.types import CallStatus

COLUMN = "aster"
DIALOGUE = ("prompt", "system", "steps")
"""Fields that the layouts have a place for."""


def with_extra(transcript: Transcript, row: Row, read: Callable[[Row], list[Transcript]]) -> Row:
    """Return the row with the column added. ``read`` is the layout's function that reads a row."""
    record = transcript.to_json()
    about = {key: value for key, value in record.items() if key not in DIALOGUE}
    about["steps"] = [
        {"tokens": step.tokens, "calls": [[call.status, call.seconds] for call in step.calls]} for step in transcript.steps
    ]
    row = {**row, COLUMN: _dump(about)}
    try:
        back = read(row)
    except Unreadable:
        back = []
    if back != [transcript]:
        row[COLUMN] = _dump(about | {"exact": record, "digest": _digest(row)})
    return row


def exact(row: Row) -> Transcript | None:
    """Return the whole transcript if the column holds it and the row is unchanged, else None."""
    about = _about(row)
    if about is None or "exact" not in about or about.get("digest") != _digest(row):
        return None
    return Transcript.from_json(about["exact"])


def ours(row: Row) -> bool:
    """Return whether we wrote the row. Then its texts are taken unchanged."""
    return _about(row) is not None


def restore(row: Row, prompt: str, system: str, steps: list[Step]) -> Transcript:
    """Return the transcript of a row that we wrote, from the texts in the layout and the fields in the column.

    Statuses and token counts are dropped if the number of calls has changed.
    """
    about = _about(row)
    assert about is not None
    kept = about.pop("steps")
    about.pop("exact", None)
    about.pop("digest", None)
    if [len(each["calls"]) for each in kept] == [len(step.calls) for step in steps]:
        for step, each in zip(steps, kept, strict=True):
            step.tokens = each["tokens"]
            for call, (status, seconds) in zip(step.calls, each["calls"], strict=True):
                call.status, call.seconds = CallStatus(status), seconds
    found = Transcript.from_json({**about, "prompt": prompt, "system": system, "steps": []})
    found.steps = steps
    return found


def _about(row: Row) -> dict[str, Any] | None:
    value = row.get(COLUMN)
    if not isinstance(value, str):
        return None
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"the column {COLUMN} is not JSON") from error
    return found if isinstance(found, dict) and "steps" in found else None


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _digest(row: Row) -> str:
    """Return a hash of the other columns. Nulls do not count, because Parquet adds them for missing fields."""
    return digest(json.dumps(_bare({key: value for key, value in row.items() if key != COLUMN}), sort_keys=True))


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _bare(item) for key, item in value.items() if item is not None}
    return [_bare(item) for item in value] if isinstance(value, list) else value
