"""Read rows of problems from files and data sets of the hub. A broken row raises UserError: none is skipped."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from aster.errors import UserError, one_line
from aster.extras import install_command
from aster.jsonl import Row, json_line_rows, parquet_rows, unbroken
from aster.terminal import say

HUB = "hf:"
"""Prefix that marks a source as a data set of the hub and not a file."""

Place = tuple[str, Row]


def stem_of(source: str) -> str:
    """Return a short name of a source: a file's name without its suffix, or a data set's name without its owner."""
    if source.startswith(HUB):
        return _dataset(source)[0].rstrip("/").rpartition("/")[2]
    return Path(source).stem


def rows_of(source: str) -> Iterator[Place]:
    """Yield the rows of a ``.jsonl`` or ``.parquet`` file, or of ``hf:OWNER/NAME[@CONFIG][:SPLIT]``, with their places.

    Raises UserError if the source does not exist, or if it or one of its rows is broken.
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
        f"{path}: problems are read from .jsonl and .parquet files, not from {path.suffix or 'files without a suffix'}; "
        f"write a data set of the Hugging Face hub as {HUB}OWNER/NAME"
    )


def _dataset(source: str) -> tuple[str, str | None, str]:
    """Return the id or local folder, the configuration and the split of ``hf:ID[@CONFIG][:SPLIT]``."""
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
        raise UserError(f"{source}: no such folder")  # a path cannot be an id on the hub
    number = 0
    # Without a network the library retries for half a minute and logs two lines each time. Our one error at the end is enough.
    say(f"{source}: reading")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        for row in datasets.load_dataset(name, config, split=split, streaming=True):
            number += 1
            yield f"row {number}", row
    except Exception as error:
        where = f"reading stopped after row {number}" if number else "cannot be read"
        raise UserError(f"{source}: {where}: {type(error).__name__}: {one_line(error)}") from error
