"""Sets: ``.jsonl`` and ``.jsonl.gz`` files of transcripts, read and written one by one: a set may be larger than memory."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from aster.errors import UserError
from aster.jsonl import Broken, lines_of, parse_row
from aster.run import replacing
from aster.transcript import Transcript

ENDINGS = (".jsonl", ".jsonl.gz")
"""Of the names of sets."""


def require_set_name(option: str, path: Path) -> None:
    """UserError where a file of this name would not be read as a set again. ``option`` names it in the error."""
    if not path.name.endswith(ENDINGS):
        raise UserError(f"{option} {path}: the name of a set ends in {' or '.join(ENDINGS)}")


def write_set(path: Path, transcripts: Iterable[Transcript]) -> int:
    """Write a set, whole or not at all; compressed where the name ends in ``.gz``. Returns how many were written."""
    # ASCII: a model or a cell may produce lone surrogates, which UTF-8 cannot hold.
    return write_lines(path, (json.dumps(each.to_json(), separators=(",", ":")).encode() + b"\n" for each in transcripts))


def write_lines(path: Path, lines: Iterable[bytes]) -> int:
    """As :func:`write_set`, of lines of other sets, as they are."""
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
    """Read a set, one transcript at a time. UserError where the file is missing or broken, with the line."""
    for place, line in read_lines(path):
        yield parse_line(place, line)


def read_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """The lines of a set as they are, each ending in a newline and with the words that say where it stands."""
    for number, line in lines_of(path, "set"):
        yield f"{path}, line {number}", line if line.endswith(b"\n") else line + b"\n"


def parse_line(place: str, line: bytes) -> Transcript:
    """The transcript of a line. UserError, with its place, where it is none."""
    row = parse_row(line)
    try:
        if not isinstance(row, Broken):
            return Transcript.from_json(row)
        trouble = str(row)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        trouble = f"{type(error).__name__}: {error}"
    raise UserError(f"{place}: not a transcript ({trouble}); other layouts are read with `aster data import`")
