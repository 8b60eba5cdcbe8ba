"""Reads rows from JSON lines, plain or compressed, and from Parquet, one at a time and each with its place in the file.

A row that cannot be read does not raise: a :class:`Broken` stands in its place. A caller that needs every row stops there
(:func:`unbroken`); one that reads somebody else's set may count it by its reason and go on.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from aster.errors import UserError, one_line

BATCH = 256
"""Rows of a Parquet file in memory at once. In sets of solutions a row has tens of kilobytes."""
_MARK = b"\xef\xbb\xbf"
"""The byte order mark that some editors write before UTF-8."""

Row = dict[str, Any]
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that cannot be read."""

    reason: str
    """A few words, the same for all rows with this fault, so that they can be counted."""
    detail: str
    """What is wrong with this row."""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def unbroken(path: Path | str, rows: Iterable[tuple[str, Found | Broken]]) -> Iterator[tuple[str, Found]]:
    """The rows, each with its place. UserError at the first broken one, with its place in ``path``."""
    for place, row in rows:
        if isinstance(row, Broken):
            raise UserError(f"{path}, {place}: {row}")
        yield place, row


def lines_of(path: Path, what: str = "file") -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers from 1. A file whose name ends in ``.gz`` is decompressed.

    UserError where the file is missing (``what`` is what the message calls it) or cannot be read.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                line = line.removeprefix(_MARK) if number == 1 else line
                if line.strip():
                    yield number, line
    except FileNotFoundError:
        raise UserError(f"{path}: no such {what}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def json_line_rows(path: Path) -> Iterator[tuple[str, Row | Broken]]:
    """The row of each line that is not blank, with its place (``line 3``). UserError as in :func:`lines_of`."""
    for number, line in lines_of(path):
        yield f"line {number}", parse_row(line)


def parse_row(line: bytes) -> Row | Broken:
    """The JSON object in a line, or what is wrong with the line."""
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Broken("not UTF-8", f"{error.reason} at byte {error.start + 1} of the line; save the file as UTF-8")
    except json.JSONDecodeError as error:
        return Broken("not JSON", f"{error.msg} at column {error.colno}")
    except (RecursionError, ValueError) as error:  # nested too deeply, a number with too many digits
        return Broken("not JSON", f"cannot be read: {one_line(error)}")
    return as_row(value)


def as_row(value: Any) -> Row | Broken:
    """A JSON value as a row: it must be an object."""
    return value if isinstance(value, dict) else Broken("no JSON object", f"a {kind_of(value)}; every row must be one {{...}}")


def parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """The rows of a ``.parquet`` file, each with its place (``row 3``). UserError where the file cannot be read."""
    # The import takes 0.2 s and much memory, and most runs read no Parquet.
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as parquet: {one_line(error)}") from None


def kind_of(value: Any) -> str:
    """The kind of a JSON value, as a word for messages."""
    names = {"dict": "object", "str": "text", "int": "number", "float": "number", "bool": "truth value", "NoneType": "null"}
    return names.get(type(value).__name__, type(value).__name__)
