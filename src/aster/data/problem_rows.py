"""Where problems come from, row by row: files and data sets of the hub. Every row is needed: a broken one stops the reading."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from aster.errors import UserError, one_line
from aster.extras import install_command
from aster.jsonl import Row, json_line_rows, parquet_rows, unbroken
from aster.terminal import say

HUB = "hf:"
"""What a data set's id begins with where a file's path could stand."""

Place = tuple[str, Row]


def stem_of(source: str) -> str:
    """A source in a word: a file's name without its ending, a data set's without its owner."""
    if source.startswith(HUB):
        return _dataset(source)[0].rstrip("/").rpartition("/")[2]
    return Path(source).stem


def rows_of(source: str) -> Iterator[Place]:
    """The rows of a ``.jsonl`` or ``.parquet`` file, or of ``hf:OWNER/NAME[@CONFIG][:SPLIT]``.

    UserError where there is no such thing, or where it or one of its rows is broken.
    """
    if source.startswith(HUB):
        return _dataset_rows(source)
    path = Path(source)
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder, not a file of problems' if path.is_dir() else 'no such file'}")
    if path.suffix == ".jsonl":
        return unbroken(path, json_line_rows(path))
    if path.suffix == ".parquet":
        return parquet_rows(path)
    raise UserError(
        f"{path}: problems are read from .jsonl and .parquet files, not from {path.suffix or 'files without ending'}; "
        f"a data set of the Hugging Face hub is written {HUB}OWNER/NAME"
    )


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
        raise UserError(f"{source}: needs the package datasets; install it ({install_command('datasets')})") from None
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
        raise UserError(f"{source}: {where}: {type(error).__name__}: {one_line(error)}") from error
