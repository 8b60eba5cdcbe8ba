"""Sets: ``.jsonl`` and ``.jsonl.gz`` files of transcripts, read and written one by one: a set may be larger than memory."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from aster.core.errors import UserError
from aster.core.run import replacing
from aster.core.transcript import Transcript


def write_set(path: Path, transcripts: Iterable[Transcript]) -> int:
    """Write a set, whole or not at all; compressed where the name ends in ``.gz``. Returns how many were written."""
    count = 0
    with replacing(path) as partial, _open_to_write(partial, path.suffix == ".gz") as stream:
        for transcript in transcripts:
            # ASCII: a model or a cell may produce lone surrogates, which UTF-8 cannot hold.
            stream.write(json.dumps(transcript.to_json(), separators=(",", ":")) + "\n")
            count += 1
    return count


def iterate_set(path: Path) -> Iterator[Transcript]:
    """Read a set, one transcript at a time. UserError where the file is missing or broken, with the line."""
    place = str(path)
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                place = f"{path}, line {number}"
                if line.strip():
                    yield Transcript.from_json(json.loads(line))
    except FileNotFoundError:
        raise UserError(f"{path}: no such set") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{place}: not a transcript ({type(error).__name__}: {error}); other layouts are read with `aster data import`"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def _open_to_write(path: Path, compressed: bool) -> IO[str]:
    return gzip.open(path, "wt", compresslevel=1, encoding="utf-8") if compressed else open(path, "w", encoding="utf-8")
