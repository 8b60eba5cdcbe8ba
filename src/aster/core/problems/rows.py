"""The rows of files and data sets, one at a time, each with the words that say where it stands."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aster.core.errors import UserError
from aster.core.progress import say

HUB = "hf:"
"""What a data set's id begins with where a file's path could stand."""

BATCH = 256
"""Rows in memory at once: sets of solutions have tens of kilobytes in each."""

Place = tuple[str, dict[str, Any]]


def stem_of(source: str) -> str:
    """A source in a word: a file's name without its ending, a data set's without its owner."""
    if source.startswith(HUB):
        return _dataset(source)[0].rstrip("/").rpartition("/")[2]
    return Path(source).stem


def rows_of(source: str) -> Iterator[Place]:
    """The rows of a ``.jsonl`` or ``.parquet`` file, or of ``hf:OWNER/NAME[@CONFIG][:SPLIT]``.

    UserError where there is no such thing, or where it is broken.
    """
    if source.startswith(HUB):
        return _dataset_rows(source)
    path = Path(source)
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder, not a file of problems' if path.is_dir() else 'no such file'}")
    if path.suffix == ".jsonl":
        return _jsonl_rows(path)
    if path.suffix == ".parquet":
        return parquet_rows(path)
    raise UserError(
        f"{path}: problems are read from .jsonl and .parquet files, not from {path.suffix or 'files without ending'}; "
        f"a data set of the Hugging Face hub is written {HUB}OWNER/NAME"
    )


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {"dict": "object", "str": "text", "int": "number", "float": "number", "bool": "truth value", "NoneType": "null"}
    return names.get(type(value).__name__, type(value).__name__)


def _jsonl_rows(path: Path) -> Iterator[Place]:
    number = 0
    try:
        with open(path, encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise UserError(f"{path}, line {number}: holds a JSON {kind_of(row)}; every line must be an object {{...}}")
                yield f"line {number}", row
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {number}: not JSON: {error.msg} at column {error.colno}") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path}, line {number}: not JSON that can be read: {_one_line(error)}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def parquet_rows(path: Path) -> Iterator[Place]:
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
        raise UserError(f"{path}: cannot be read as parquet: {_one_line(error)}") from None


def _dataset(source: str) -> tuple[str, str | None, str]:
    """The id or local folder, the configuration and the split of ``hf:ID[@CONFIG][:SPLIT]``."""
    name, _, split = source.removeprefix(HUB).partition(":")
    name, _, config = name.partition("@")
    if not name:
        raise UserError(f"{source}: write a data set as {HUB}OWNER/NAME[@CONFIG][:SPLIT]")
    return name, config or None, split or "train"


def _dataset_rows(source: str) -> Iterator[Place]:
    try:
        import datasets
    except ImportError:
        raise UserError(f"{source}: needs the package datasets; install it (pip install 'aster-tir[hub]')") from None
    name, config, split = _dataset(source)
    if name.startswith(("/", ".")) and not Path(name).exists():
        raise UserError(f"{source}: no such folder")  # and not an id to ask the hub for
    number = 0
    # Without network it tries for half a minute, with two lines a try. One error at the end says the same.
    say(f"{source}: reading")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        for row in datasets.load_dataset(name, config, split=split, streaming=True):
            number += 1
            yield f"row {number}", row
    except Exception as error:
        where = f"reading broke off after row {number}" if number else "cannot be read"
        raise UserError(f"{source}: {where}: {type(error).__name__}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
