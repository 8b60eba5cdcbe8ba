"""The one reader of JSON lines, plain or compressed, and of Parquet: rows, one at a time, with where each stands.

A row that cannot be read is no exception: it comes as :class:`Broken` in its place. What is made of it is the caller's: who
needs every row stops (:func:`unbroken`), who reads somebody else's set counts it by its reason and goes on.
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
"""Rows of a Parquet file in memory at once: sets of solutions have tens of kilobytes in each."""
_MARK = b"\xef\xbb\xbf"
"""What some editors put before UTF-8."""

Row = dict[str, Any]
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Broken:
    """What stands where a row should."""

    reason: str
    """A few words, by which such rows are counted."""
    detail: str
    """What is wrong with this one."""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def unbroken(path: Path | str, rows: Iterable[tuple[str, Found | Broken]]) -> Iterator[tuple[str, Found]]:
    """The rows as they come. UserError at the first broken one, with its place in ``path``."""
    for place, row in rows:
        if isinstance(row, Broken):
            raise UserError(f"{path}, {place}: {row}")
        yield place, row


def lines_of(path: Path, what: str = "file") -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers from 1; decompressed where its name ends in ``.gz``.

    UserError where it is missing (``what`` says what is) or cannot be read.
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
    """The row of each line that is not blank. UserError as :func:`lines_of`."""
    for number, line in lines_of(path):
        yield f"line {number}", parse_row(line)


def parse_row(line: bytes) -> Row | Broken:
    """The JSON object in a line."""
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Broken("not UTF-8", f"{error.reason} at byte {error.start + 1} of the line; save the file as UTF-8")
    except json.JSONDecodeError as error:
        return Broken("not JSON", f"{error.msg} at column {error.colno}")
    except (RecursionError, ValueError) as error:  # nested too deep, a number too long
        return Broken("not JSON", f"cannot be read: {one_line(error)}")
    return as_row(value)


def as_row(value: Any) -> Row | Broken:
    """A JSON value, where it is an object."""
    return value if isinstance(value, dict) else Broken("no JSON object", f"a {kind_of(value)}; every row must be one {{...}}")


def parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """The rows of a ``.parquet`` file, a few at a time. UserError where it is broken."""
    # Costs 0.2 s and a good deal of memory, and most runs read no parquet.
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
    """What a JSON value is, in words."""
    names = {"dict": "object", "str": "text", "int": "number", "float": "number", "bool": "truth value", "NoneType": "null"}
    return names.get(type(value).__name__, type(value).__name__)
