"""Rows of JSON lines: a broken one stands in its place, and each caller decides what to do about it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aster.data.formats.importing import import_set
from aster.data.problems import load_problems
from aster.data.sets import iterate_set
from aster.environments import PythonMath, transcript_scorer
from aster.jsonl import Broken, json_line_rows, lines_of, unbroken
from tests.refusals import refused

SCORE = transcript_scorer(PythonMath())
GOOD = {"prompt": "1?", "answer": "1", "messages": [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1"}]}
BROKEN = {
    "not JSON": b'{"prompt": ',
    "not UTF-8": b'{"prompt": "\xff"}',
    "no JSON object": b"[1, 2]",
}


def write(path: Path, *lines: bytes, ending: bytes = b"\n") -> Path:
    content = ending.join(lines)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_broken_row_comes_in_its_place_and_the_rest_is_read(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, b'\xef\xbb\xbf{"a": 1}', b"", *BROKEN.values(), b"  ", b'{"a": "\xe2\x80\xa8"}')
    rows = dict(json_line_rows(path))
    assert list(rows) == ["line 1", "line 3", "line 4", "line 5", "line 7"]
    assert (rows["line 1"], rows["line 7"]) == ({"a": 1}, {"a": "\u2028"})
    broken = [row for row in rows.values() if isinstance(row, Broken)]
    assert [row.reason for row in broken] == list(BROKEN)
    assert all(row.detail for row in broken)


@pytest.mark.parametrize("reason", BROKEN)
def test_problems_stop_at_a_broken_row_and_an_import_counts_it(reason: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", json.dumps(GOOD).encode(), BROKEN[reason], json.dumps(GOOD).encode())
    with refused(f"{path}, line 2") as caught:
        load_problems(path)
    assert reason in str(caught.value)
    report = import_set(path, "messages", tmp_path / "set.jsonl", score=SCORE)
    assert (report.attempts, dict(report.unreadable), report.examples[reason]) == (2, {reason: 1}, ["line 2"])


# An archive contains the time, so tests named after its content would have other names in every process.
@pytest.mark.parametrize(
    "content",
    [gzip.compress(b"{}")[:10] + b"\xff" * 20, gzip.compress(b"{}" * 5000)[:-9], b"{}"],
    ids=["damaged", "cut short", "no archive"],
)
def test_every_reader_refuses_a_damaged_archive_by_its_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(content)
    for read in (
        lambda: list(lines_of(path)),
        lambda: list(iterate_set(path)),
        lambda: import_set(path, "tora", path, score=SCORE),
    ):
        with refused(str(path)):
            read()


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"])
def test_a_line_that_python_cannot_parse_is_a_broken_row(line: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", line)
    assert [getattr(row, "reason", None) for _, row in json_line_rows(path)] == ["not JSON"]
    with refused(f"{path}, line 1"):
        list(iterate_set(path))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)

ROW = st.dictionaries(st.text(max_size=3), JSON, max_size=3)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=3), JSON, max_size=3), max_size=5), ending=st.sampled_from([b"\n", b"\r\n"])
)
def test_any_rows_are_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], ending: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    write(path, *(json.dumps(row, ensure_ascii=False).encode() for row in rows), ending=ending)
    assert [row for _, row in unbroken(path, json_line_rows(path))] == rows
