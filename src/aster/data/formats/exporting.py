"""``aster data export``: write a set in the layout of another trainer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from aster.data.formats import LAYOUTS
from aster.data.formats.base import Layout
from aster.data.formats.rows import write_rows
from aster.errors import UserError
from aster.jsonl import Row
from aster.transcript import Transcript

PROMPTS = "verl_prompts"


def export_set(source: Path, transcripts: Iterable[Transcript], layout: str, out: Path) -> int:
    """Write the rows of a set's transcripts and return their number. ``source`` names the set in errors.

    Raises UserError if the layout cannot be written or the set is empty. In a set of prompts for RL, each problem needs a known
    answer and an id of its own.
    """
    how = LAYOUTS.get(layout)
    if how is None or how.write is None:
        writable = ", ".join(name for name, each in LAYOUTS.items() if each.write is not None)
        raise UserError(f"--layout {layout}: cannot be written; choose one of {writable}")
    return write_rows(out, how, _rows(source, transcripts, how))


def _rows(source: Path, transcripts: Iterable[Transcript], layout: Layout) -> Iterator[Row]:
    assert layout.write is not None
    seen: dict[str, tuple[str, str]] = {}
    done: set[str] = set()
    empty = True
    for transcript in transcripts:
        if layout.name == PROMPTS:
            asked = transcript.prompt, transcript.expected
            if seen.setdefault(transcript.problem_id, asked) != asked:
                raise UserError(
                    f"{source}: two problems or answers have the id {transcript.problem_id!r}; give them different ids"
                )
            if not transcript.expected:
                raise UserError(
                    f"{source}: the answer of problem {transcript.problem_id!r} is not known, so RL cannot reward it; add it "
                    "with aster data import --problems, or remove the problem"
                )
            if transcript.problem_id in done:
                continue
            done.add(transcript.problem_id)
        empty = False
        yield layout.write(transcript)
    if empty:
        # Raised while the file is being written, so that an existing file is not replaced by an empty one.
        raise UserError(f"{source}: no trajectory to export: the set is empty")
