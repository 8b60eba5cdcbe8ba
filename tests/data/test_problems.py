"""Reading problems: the common layouts, and one line of error that names the place of each fault."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aster.data.problems import BOX_REQUEST, DAPO_HEAD, DAPO_TAIL, choose_problems, load_problems
from aster.errors import UserError
from aster.types import Problem

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def write_jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def error_of(path: Path) -> str:
    """The one-line error of reading a file, without the file's path at its beginning."""
    with pytest.raises(UserError) as caught:
        load_problems(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"prompt": "1+1?", "answer": 2}, "1+1?", "2"),
        ({"problem": " 1+1?\n", "answer": "2"}, "1+1?", "2"),
        ({"question": "1+1?", "expected_answer": "2"}, "1+1?", "2"),
        ({"question": "1+1?", "answer": 2.0}, "1+1?", "2"),
        ({"question": "1+1?", "answer": 0.5}, "1+1?", "0.5"),
        ({"question": "1+1?", "answer": 0}, "1+1?", "0"),
        ({"problem": "1+1?", "answer": None, "reward_model": {"ground_truth": "2"}}, "1+1?", "2"),
        ({"problem": "1+1?", "reward_model": {"ground_truth": '["2"]'}}, "1+1?", "2"),
        ({"problem": "1+1?", "answer": '["a", b)'}, "1+1?", '["a", b)'),
        ({"problem": "1+1?", "answer": '["' + "[" * 5}, "1+1?", '["' + "[" * 5),
        ({"problem": "1+1?", "answer": '["a", ' + "[" * 9999}, "1+1?", '["a", ' + "[" * 9999),
        ({"problem": "1+1?", "answer": r"\boxed{2}"}, "1+1?", "2"),
        ({"problem": "1+1?", "solution": r"It is \boxed{3}, no, \boxed{2}."}, "1+1?", "2"),
        ({"problem": "bare", "prompt": "asked", "answer": "2"}, "asked", "2"),
        ({"prompt": "", "problem": "bare", "answer": "2"}, "bare", "2"),
        (
            {
                "prompt": [
                    {"role": "system", "content": "Be kind."},
                    {"role": "user", "content": "0?"},
                    {"role": "assistant", "content": "0"},
                    {"role": "user", "content": "\n1+1?\n"},
                ],
                "answer": "2",
            },
            "1+1?",
            "2",
        ),
    ],
)
def test_layouts(tmp_path: Path, row: dict[str, Any], prompt: str, answer: str) -> None:
    (problem,) = load_problems(write_jsonl(tmp_path / "set.jsonl", row))
    assert (problem.prompt, problem.answer, problem.source) == (prompt, answer, "set")


def test_parquet_and_jsonl_give_the_same_problems(tmp_path: Path) -> None:
    rows = [
        {
            "id": "a",
            "prompt": [{"role": "user", "content": "1?"}],
            "reward_model": {"ground_truth": "1"},
            "data_source": "here",
        },
        {"id": "b", "prompt": [{"role": "user", "content": "2?"}], "reward_model": {"ground_truth": "2"}, "data_source": None},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "set.parquet")
    problems = load_problems(tmp_path / "set.parquet")
    assert problems == [Problem("a", "1?", "1", "here"), Problem("b", "2?", "2", "set")]
    assert problems == load_problems(write_jsonl(tmp_path / "set.jsonl", *rows))


def test_the_suffix_is_appended_only_once(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"prompt": "1?", "answer": 1}, {"prompt": "2?\n\nBox it.", "answer": 2})
    assert [problem.prompt for problem in load_problems(path, "\n\nBox it.\n")] == ["1?\n\nBox it.\n", "2?\n\nBox it."]


def test_the_frame_of_dapo_is_replaced_by_the_suffix(tmp_path: Path) -> None:
    framed = f"{DAPO_HEAD}\n\nWhat is 1+1?\n\n{DAPO_TAIL}"
    path = write_jsonl(tmp_path / "a.jsonl", {"prompt": [{"role": "user", "content": framed}], "answer": "2"})
    assert load_problems(path)[0].prompt == f"What is 1+1?\n{BOX_REQUEST}"
    assert load_problems(path, " Box it.")[0].prompt == "What is 1+1? Box it."


def test_ids(tmp_path: Path) -> None:
    rows = [
        {"id": 3, "prompt": "a", "answer": 1},
        {"id": "x-7", "extra_info": {"index": 8}, "prompt": "b", "answer": 1},
        {"extra_info": {"index": 9}, "prompt": "c", "answer": 1},
        {"id": None, "extra_info": {"index": "u-1"}, "prompt": "d", "answer": 1},
        {"prompt": "e", "answer": 1},
    ]
    ids = [problem.id for problem in load_problems(write_jsonl(tmp_path / "set.jsonl", *rows))]
    assert ids[:4] == ["set-3", "x-7", "set-9", "u-1"]
    # The hash is of the prompt in the file: neither the row's place nor a suffix changes it.
    (problem,) = load_problems(write_jsonl(tmp_path / "other.jsonl", rows[4]), " Box it.")
    assert problem.id == ids[4]


def test_repeated_rows_are_kept_once(tmp_path: Path) -> None:
    first, second = {"id": "a", "prompt": "1?", "answer": "1"}, {"prompt": "2?", "answer": 2}
    assert len(load_problems(write_jsonl(tmp_path / "a.jsonl", first, first, second, second))) == 2


@pytest.mark.parametrize("other", [{"prompt": "2?", "answer": "1"}, {"prompt": "1?", "answer": "2"}])
def test_one_id_for_two_problems_is_an_error(tmp_path: Path, other: dict[str, Any]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"id": "p", "prompt": "1?", "answer": "1"}, {"id": "p", **other})
    assert all(part in error_of(path) for part in ("line 1", "line 2", "'p'"))


@pytest.mark.parametrize(
    ("text", "place", "named"),
    [
        ("", ": ", []),
        ("\n \n", ": ", []),
        ('{"prompt": "1?", "answer": 1}\n{"prompt": \n', ", line 2: ", ["JSON"]),
        ("[1]\n", ", line 1: ", ["list"]),
        ('{"answer": 1, "body": "1?"}\n', ", line 1: ", ["prompt, problem, question", "answer, body"]),
        ('{"prompt": "1?", "key": 1}\n', ", line 1: ", ["answer, expected_answer", "prompt, key"]),
        ('{"prompt": "1?", "solution": "2"}\n', ", line 1: ", ["answer, expected_answer", "\\boxed{}"]),
        ('{"prompt": "1?", "answer": " "}\n', ", line 1: ", ["answer, expected_answer"]),
        ('{"prompt": "1?", "answer": NaN}\n', ", line 1: ", ["answer, expected_answer"]),
        ('{"prompt": "1?", "answer": true}\n', ", line 1: answer: ", ["truth value"]),
        ('{"prompt": "1?", "answer": [1, 2]}\n', ", line 1: answer: ", ["list"]),
        ('{"prompt": 5, "answer": 1}\n', ", line 1: prompt: ", ["number"]),
        ('{"prompt": [{"role": "system", "content": "x"}], "answer": 1}\n', ", line 1: prompt: ", ["'user'"]),
        ('{"prompt": [{"role": "user", "content": ["x"]}], "answer": 1}\n', ", line 1: prompt: ", ["list"]),
        ("[" * 100_000 + "\n", ", line 1: ", ["JSON"]),
    ],
)
def test_the_error_names_the_line_and_the_fault(tmp_path: Path, text: str, place: str, named: list[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    error = error_of(path)
    assert error.startswith(place)
    assert all(part in error for part in named)


def test_the_error_names_an_unreadable_file(tmp_path: Path) -> None:
    error_of(tmp_path / "none.jsonl")
    assert "folder" in error_of(tmp_path)
    (tmp_path / "a.csv").write_text("x")
    assert all(part in error_of(tmp_path / "a.csv") for part in (".csv", ".jsonl", ".parquet", "hf:OWNER/NAME"))
    (tmp_path / "a.parquet").write_text("not parquet")
    assert "parquet" in error_of(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    assert error_of(tmp_path / "a.jsonl").startswith(", line 1: ")
    assert "byte 13" in error_of(tmp_path / "a.jsonl")


def test_the_error_names_the_row_of_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["1?", "2?"], "answer": ["1", None]}), path)
    assert error_of(path).startswith(", row 2: ")
    pyarrow.parquet.write_table(pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), path)
    assert error_of(path).startswith(": ")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["role", "content", "index", "ground_truth"]), inner)
    ),
    max_leaves=5,
)
NAMES = (
    "prompt",
    "problem",
    "question",
    "answer",
    "expected_answer",
    "solution",
    "reward_model",
    "id",
    "extra_info",
    "data_source",
)


@settings(max_examples=200, deadline=None)
@given(row=st.dictionaries(st.sampled_from(NAMES), JSON))
def test_any_row_is_a_problem_or_a_user_error(tmp_path_factory: pytest.TempPathFactory, row: dict[str, Any]) -> None:
    path = write_jsonl(tmp_path_factory.getbasetemp() / "any.jsonl", row)
    try:
        (problem,) = load_problems(path)
    except UserError:
        assert error_of(path).startswith(", line 1: ")
        return
    assert all(isinstance(part, str) and part for part in (problem.id, problem.prompt, problem.answer, problem.source))


@pytest.mark.parametrize(("name", "rows", "integers"), [("aime25", 30, 30), ("hmmt25", 30, 14), ("dapo_sample", 1000, 1000)])
def test_published_files(name: str, rows: int, integers: int) -> None:
    path = DATA / f"{name}.parquet"
    if not path.exists():
        pytest.skip(f"no published problems here: {path} is missing")
    problems = load_problems(path)
    assert len(problems) == rows
    assert Counter(problem.answer.lstrip("-").isdecimal() for problem in problems)[True] == integers
    assert all(problem.prompt.endswith(BOX_REQUEST) and problem.prompt == problem.prompt.strip() for problem in problems)


def test_the_original_prompts_of_dapo_become_those_of_the_sample(tmp_path: Path) -> None:
    """The sample holds DAPO's own prompt, and the same prompt with a request for a box and other spacing."""
    path = DATA / "dapo_sample.parquet"
    if not path.exists():
        pytest.skip(f"no published problems here: {path} is missing")
    rows = pyarrow.parquet.read_table(path, columns=["source_prompt", "reward_model", "extra_info"]).to_pylist()
    framed = [{"prompt": row.pop("source_prompt"), **row} for row in rows]
    ours = load_problems(write_jsonl(tmp_path / "dapo.jsonl", *framed))
    theirs = load_problems(path)
    assert [(p.id, p.prompt.split(), p.answer) for p in ours] == [(p.id, p.prompt.split(), p.answer) for p in theirs]


def test_ids_of_published_files_do_not_collide() -> None:
    if not DATA.exists():
        pytest.skip(f"no published problems here: {DATA} is missing")
    ids = [problem.id for name in ("aime25", "hmmt25", "dapo_sample") for problem in load_problems(DATA / f"{name}.parquet")]
    assert len(set(ids)) == len(ids) == 1060


@given(st.integers(1, 400), st.tuples(*3 * [st.integers(1, 450)]).map(sorted), st.integers(0, 3))
def test_a_larger_choice_contains_the_smaller_ones(total: int, counts: list[int], seed: int) -> None:
    """Also if the first choice is small: ``random.sample`` then uses another algorithm."""
    problems = [Problem(str(n), "1+1?", "2") for n in range(total)]
    chosen = [[int(p.id) for p in choose_problems(problems, count, seed, counts[0])] for count in counts]
    assert chosen[0] == [int(p.id) for p in choose_problems(problems, counts[0], seed)]
    before: set[int] = set()
    for count, numbers in zip(counts, chosen, strict=True):
        assert numbers == sorted(numbers)
        assert len(set(numbers)) == min(count, total)
        assert before <= set(numbers)
        before = set(numbers)
