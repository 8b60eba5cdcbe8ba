"""Read and write sets: ``.jsonl`` and ``.jsonl.gz`` files with one transcript per line.

Transcripts are read and written one at a time, so a set may be larger than memory.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from aster.errors import UserError
from aster.jsonl import Broken, lines_of, parse_row
from aster.run import replacing
from aster.transcript import Transcript
from aster.types import Trajectory

ENDINGS = (".jsonl", ".jsonl.gz")
"""Suffixes of a set's file name."""
Made = TypeVar("Made", bound=Trajectory | Transcript)


def require_set_name(option: str, path: Path) -> None:
    """Raise UserError if a file of this name could not be read as a set. ``option`` is named in the error."""
    if not path.name.endswith(ENDINGS):
        raise UserError(f"{option} {path}: the name of a set must end in {' or '.join(ENDINGS)}")


def write_set(path: Path, transcripts: Iterable[Transcript]) -> int:
    """Write a set atomically, compressed if the name ends in ``.gz``. Returns the number of transcripts."""
    # json.dumps writes ASCII: a model or a cell may produce lone surrogates, which UTF-8 cannot encode.
    return write_lines(path, (json.dumps(each.to_json(), separators=(",", ":")).encode() + b"\n" for each in transcripts))


def write_lines(path: Path, lines: Iterable[bytes]) -> int:
    """Write lines of other sets unchanged as a set; see :func:`write_set`."""
    count = 0
    with (
        replacing(path) as partial,
        gzip.open(partial, "wb", compresslevel=1) if path.suffix == ".gz" else open(partial, "wb") as stream,
    ):
        for line in lines:
            stream.write(line)
            count += 1
    return count


def iterate_set(path: Path) -> Iterator[Transcript]:
    """Yield the transcripts of a set. Raises UserError if the file is missing, or with the line number if it is broken."""
    for place, line in read_lines(path):
        yield parse_line(place, line)


def read_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield each line of a set with its place (``FILE, line N``). Every line ends in a newline."""
    for number, line in lines_of(path, "set"):
        yield f"{path}, line {number}", line if line.endswith(b"\n") else line + b"\n"


def parse_line(place: str, line: bytes) -> Transcript:
    """Parse one line as a transcript. Raises UserError with ``place`` if it is not one."""
    row = parse_row(line)
    try:
        if not isinstance(row, Broken):
            return Transcript.from_json(row)
        trouble = str(row)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        trouble = f"{type(error).__name__}: {error}"
    raise UserError(f"{place}: not a transcript ({trouble}); read other layouts with `aster data import`")


def latest(attempts: Callable[[], Iterator[Made]]) -> Iterator[Made]:
    """Yield the attempts that ``attempts()`` yields; if one at a problem was repeated, only the last. Calls it twice, so that
    they need not be in memory together."""
    last = {(each.problem_id, each.sample): number for number, each in enumerate(attempts())}
    for number, each in enumerate(attempts()):
        if last[each.problem_id, each.sample] == number:
            yield each
