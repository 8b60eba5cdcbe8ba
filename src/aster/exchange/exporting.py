"""``aster data export``: a set in the layout of another trainer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from aster.core.errors import UserError
from aster.core.rows import Row
from aster.core.transcript import Transcript
from aster.exchange import LAYOUTS
from aster.exchange.base import Layout
from aster.exchange.rows import write_rows

PROMPTS = "verl_prompts"


def export_set(transcripts: Iterable[Transcript], layout: str, out: Path) -> int:
    """Write a set's rows; returns how many. UserError where the layout cannot be written."""
    how = LAYOUTS.get(layout)
    if how is None or how.write is None:
        writable = ", ".join(name for name, each in LAYOUTS.items() if each.write is not None)
        raise UserError(f"--layout {layout}: cannot be written; there are {writable}")
    return write_rows(out, how, _rows(transcripts, how))


def _rows(transcripts: Iterable[Transcript], layout: Layout) -> Iterator[Row]:
    assert layout.write is not None
    seen: set[str] = set()
    empty = True
    for transcript in transcripts:
        if layout.name == PROMPTS:
            if transcript.problem_id in seen:
                continue
            seen.add(transcript.problem_id)
        empty = False
        yield layout.write(transcript)
    if empty:
        # From in here, so that a file that is there already is not replaced by nothing.
        raise UserError("no trajectory to export: the set is empty")
