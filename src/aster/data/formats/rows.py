"""Read and write rows of ``.jsonl``, ``.json`` and ``.parquet`` files one at a time, so files may be larger than memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from aster.data.formats.base import Layout
from aster.errors import UserError, one_line
from aster.jsonl import BATCH, Broken, Row, as_row, json_line_rows, parquet_rows
from aster.run import replacing

READ = (".jsonl", ".jsonl.gz", ".json", ".parquet")
WRITTEN = (".jsonl", ".json", ".parquet")
PIECE = 1 << 20
"""Characters of a JSON array read at once."""


def read_rows(path: Path) -> Iterator[tuple[str, Row | Broken]]:
    """Yield each row with its place in words (``line 3``), broken rows too.

    Raises UserError if the file does not exist or cannot be read at all.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder, not a file of rows' if path.is_dir() else 'no such file'}")
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return json_line_rows(path)
    if path.suffix == ".json":
        return _json_array(path)
    if path.suffix == ".parquet":
        return parquet_rows(path)
    raise UserError(f"{path}: the file's name must end in {', '.join(READ)}")


def write_rows(path: Path, layout: Layout, rows: Iterable[Row]) -> int:
    """Write rows atomically and return their number. Raises UserError for an unknown file suffix."""
    write: Callable[[Path, Layout, Iterable[Row]], int]
    if path.suffix == ".jsonl":
        write = _write_lines
    elif path.suffix == ".json":
        write = _write_array
    elif path.suffix == ".parquet":
        write = _write_parquet
    else:
        raise UserError(f"{path}: the file's name must end in {', '.join(WRITTEN)}")
    with replacing(path) as partial:
        return write(partial, layout, rows)


def _json_array(path: Path) -> Iterator[tuple[str, Row | Broken]]:
    """Yield the objects of one JSON array without loading the whole file."""
    decoder = json.JSONDecoder()
    number, buffer, opened = 0, "", False
    try:
        with open(path, encoding="utf-8-sig") as stream:
            while True:
                piece = stream.read(PIECE)
                buffer += piece
                position = 0
                while True:
                    position = _skip(buffer, position, " \t\r\n" if not opened else " \t\r\n,")
                    if position == len(buffer):
                        break
                    if not opened:
                        if buffer[position] != "[":
                            raise UserError(f"{path}: must hold an array of rows; name a file of JSON lines .jsonl")
                        opened, position = True, position + 1
                        continue
                    if buffer[position] == "]":
                        if buffer[position + 1 :].strip() or stream.read().strip():
                            raise UserError(f"{path}: there is text after the array's last row {number}; remove it")
                        return
                    try:
                        value, end = decoder.raw_decode(buffer, position)
                    except ValueError:
                        # The row continues in the next piece. (A cut number would be decoded as a number, but a row must be
                        # an object, which cannot be decoded until it is complete.)
                        break
                    number, position = number + 1, end
                    yield f"row {number}", as_row(value)
                buffer = buffer[position:]
                if not piece:
                    raise UserError(f"{path}: not JSON after row {number}: the array is not closed, or a row is broken")
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from None


def _skip(text: str, position: int, characters: str) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position


def _write_lines(path: Path, layout: Layout, rows: Iterable[Row]) -> int:  # noqa: ARG001 - one signature
    with open(path, "w", encoding="utf-8") as stream:
        return _write_json(stream, rows, "", "\n", "\n")


def _write_array(path: Path, layout: Layout, rows: Iterable[Row]) -> int:  # noqa: ARG001 - one signature
    with open(path, "w", encoding="utf-8") as stream:
        return _write_json(stream, rows, "[\n", ",\n", "\n]\n")


def _write_json(stream: IO[str], rows: Iterable[Row], first: str, between: str, last: str) -> int:
    count = 0
    stream.write(first)
    for row in rows:
        stream.write((between if count else "") + json.dumps(row, ensure_ascii=False))
        count += 1
    stream.write(last if count or first else "")
    return count


def _write_parquet(path: Path, layout: Layout, rows: Iterable[Row]) -> int:
    import pyarrow
    import pyarrow.parquet

    assert layout.schema is not None
    schema = layout.schema()
    count = 0
    batch: list[dict[str, Any]] = []
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for row in rows:
            batch.append(row)
            count += 1
            if len(batch) == BATCH:
                writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))
                batch = []
        if batch:
            writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))
    return count
