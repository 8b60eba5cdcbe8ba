"""The column that keeps what a layout lacks, so that what was written is read back as it was.

It holds a transcript's fields beside its dialogue, and of each step and call what no layout has: counted tokens, statuses,
seconds. Some dialogues cannot be held by a layout at all: half a surrogate pair in Parquet, or a ``</think>`` in the thinking
where thinking stands in the text. Each row is therefore read back when it is written; where that gives another transcript, the
column holds the whole of it besides. A hash of the row goes with it: of a row that was changed since, the changed text counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from aster.data.formats.base import Unreadable, digest
from aster.jsonl import Row
from aster.transcript import Step, Transcript
from aster.types import CallStatus

COLUMN = "aster"
DIALOGUE = ("prompt", "system", "steps")
"""The fields that the layouts themselves hold."""


def with_extra(transcript: Transcript, row: Row, read: Callable[[Row], list[Transcript]]) -> Row:
    """The row with its column."""
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
    """The whole transcript, where the row holds one and has not been changed since."""
    about = _about(row)
    if about is None or "exact" not in about or about.get("digest") != _digest(row):
        return None
    return Transcript.from_json(about["exact"])


def ours(row: Row) -> bool:
    """Whether we wrote the row: then its texts are taken as they are."""
    return _about(row) is not None


def restore(row: Row, prompt: str, system: str, steps: list[Step]) -> Transcript:
    """The transcript of a row of ours from the texts that the layout holds; statuses and counts where they still fit."""
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
    """Of the columns beside ours. Parquet fills what a row lacks with nulls, so these do not count."""
    return digest(json.dumps(_bare({key: value for key, value in row.items() if key != COLUMN}), sort_keys=True))


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _bare(item) for key, item in value.items() if item is not None}
    return [_bare(item) for item in value] if isinstance(value, list) else value
