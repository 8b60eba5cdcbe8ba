"""A documented row of each problem data set, and the problem that it is read as."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aster.data.problem_layouts import LAYOUTS, layout_of
from aster.data.problems import BOX_REQUEST, DAPO_HEAD, DAPO_TAIL, iterate_problems, load_problems
from aster.errors import UserError
from aster.types import Problem

ASKED = f"What is 1+1?\n{BOX_REQUEST}"
FRAMED = f"{DAPO_HEAD}\n\nWhat is 1+1?\n\n{DAPO_TAIL}"


def chat(text: str) -> list[dict[str, str]]:
    return [{"content": text, "role": "user"}]


ROWS: list[tuple[str, dict[str, Any], Problem]] = [
    (
        "verl (DAPO-Math-17k, ...)",
        {
            "data_source": "math_dapo",
            "prompt": chat(FRAMED),
            "ability": "MATH",
            "reward_model": {"ground_truth": "2", "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": "9a9b6eb4-a1cb"},
        },
        Problem("9a9b6eb4-a1cb", ASKED, "2", "math_dapo"),
    ),
    (
        "DAPO-Math-17k, processed",
        {
            "prompt": "What is 1+1?",
            "solution": "2",
            "data_source": "math_dapo",
            "source_prompt": chat(FRAMED),
            "ability": "MATH",
            "reward_model": {"ground_truth": "2", "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": "9a9b6eb4-a1cb"},
        },
        Problem("9a9b6eb4-a1cb", "What is 1+1?", "2", "math_dapo"),
    ),
    (
        "Skywork-OR1-RL-Data",
        {
            "data_source": "train-math-deepscaler",
            "prompt": chat("What is 1+1?"),
            "ability": "math",
            "reward_model": {"ground_truth": '["2"]', "style": "rule"},
            "extra_info": {
                "index": 0,
                "model_difficulty": {
                    "DeepSeek-R1-Distill-Qwen-1.5B": 16,
                    "DeepSeek-R1-Distill-Qwen-7B": 4,
                    "DeepSeek-R1-Distill-Qwen-32B": 0,
                },
            },
        },
        Problem("set-0", "What is 1+1?", "2", "train-math-deepscaler", metadata={"difficulty": 0.25}),
    ),
    (
        "OpenMathReasoning",
        {
            "expected_answer": "2",
            "problem_type": "has_answer_extracted",
            "problem_source": "aops_c6_high_school_olympiads",
            "generation_model": "DeepSeek-R1",
            "pass_rate_72b_tir": "0.96875",
            "problem": "What is 1+1?",
            "generated_solution": "<think>...</think> \\boxed{2}",
            "inference_mode": "cot",
            "used_in_kaggle": True,
        },
        Problem("cb0e0", "What is 1+1?", "2", "aops_c6_high_school_olympiads", metadata={"difficulty": 0.0312}),
    ),
    (
        "POLARIS",
        {"problem": "What is 1+1?", "answer": "2", "difficulty": "3/8"},
        Problem("", "What is 1+1?", "2", "set", metadata={"difficulty": 0.625}),
    ),
    (
        "MathArena (AIME, HMMT, ...)",
        {"problem_idx": 7, "problem": "What is 1+1?", "answer": 2, "problem_type": ["Number Theory", "Algebra"]},
        Problem("set-7", "What is 1+1?", "2", "set", metadata={"topic": "Number Theory"}),
    ),
    (
        "AIME, BeyondAIME, MATH, any other",
        {"problem": "What is 1+1?", "answer": "2"},
        Problem("", "What is 1+1?", "2", "set"),
    ),
    (
        "AIME, BeyondAIME, MATH, any other",
        {"id": 60, "problem": "What is 1+1?", "solution": "It is \\boxed{2}.", "answer": "002", "url": "u", "year": "2024"},
        Problem("set-60", "What is 1+1?", "002", "set"),
    ),
    (
        "AIME, BeyondAIME, MATH, any other",
        {"problem": "What is 1+1?", "solution": "It is \\boxed{2}.", "answer": "2", "subject": "Algebra", "level": 5},
        Problem("", "What is 1+1?", "2", "set", metadata={"difficulty": 5.0, "topic": "Algebra"}),
    ),
]


@pytest.mark.parametrize(("layout", "row", "problem"), ROWS)
def test_a_row_of_each_layout_is_read(tmp_path: Path, layout: str, row: dict[str, Any], problem: Problem) -> None:
    assert layout_of(row, {}).name == layout
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps(row))
    [read] = load_problems(path)
    expected = (problem.prompt, problem.answer, problem.source, problem.metadata)
    assert (read.prompt, read.answer, read.source, read.metadata) == expected
    if problem.id.startswith(("set", "9a9")):
        assert read.id == problem.id
    else:
        assert len(read.id) == 16  # a hash of the prompt


def test_every_layout_of_the_table_is_tested() -> None:
    assert {layout for layout, _, _ in ROWS} == {layout.name for layout in LAYOUTS}


def test_rows_of_one_problem_are_joined_and_unanswered_problems_are_left_out(tmp_path: Path) -> None:
    row = ROWS[3][1]
    rows = [row, row | {"generated_solution": "another"}, row | {"problem": "Prove it.", "expected_answer": None}]
    rows[2]["problem_type"] = "converted_proof"
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    assert [problem.prompt for problem in load_problems(path)] == ["What is 1+1?"]
    faults: list[str] = []
    assert len(list(iterate_problems(path, fault=faults.append))) == 2
    [fault] = faults
    assert fault.startswith(f"{path}, line 3: ")
    assert "converted_proof" in fault


def test_a_missing_pass_rate_gives_no_difficulty(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text(json.dumps(ROWS[3][1] | {"pass_rate_72b_tir": "n/a"}))
    assert load_problems(tmp_path / "set.jsonl")[0].metadata == {}


def test_the_users_column_map_overrides_the_layout(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    row = {
        "task": {"text": "1?", "key.with.dots": "1"},
        "problem": "no",
        "answer": "no",
        "hard": "yes",
        "kind": "sums",
        "n": "x",
    }
    path.write_text(json.dumps(row))
    columns = {"prompt": "task.text", "answer": "task.key.with.dots", "difficulty": "hard", "topic": "kind", "id": "n"}
    assert load_problems(path, columns=columns) == [Problem("x", "1?", "1", "set", "", {"difficulty": "yes", "topic": "sums"})]
    with pytest.raises(UserError, match=r"--columns: .*'promt'.*prompt, answer"):
        load_problems(path, columns={"promt": "task"})
    with pytest.raises(UserError, match=r"line 1: .*question"):
        load_problems(path, columns={"prompt": "question"})


def test_a_data_set_of_the_hub_is_streamed(tmp_path: Path) -> None:
    """From a local folder, which the library reads in the same way."""
    pytest.importorskip("datasets")
    (tmp_path / "sums").mkdir()
    lines = "".join(json.dumps({"problem": f"{n}+1?", "answer": str(n + 1), "difficulty": "2/8"}) + "\n" for n in range(3))
    (tmp_path / "sums" / "train.jsonl").write_text(lines)
    (tmp_path / "sums" / "test.jsonl").write_text(lines.splitlines()[0])
    problems = load_problems(f"hf:{tmp_path}/sums")
    assert [(p.prompt, p.answer, p.source, p.metadata) for p in problems] == [
        (f"{n}+1?", str(n + 1), "sums", {"difficulty": 0.75}) for n in range(3)
    ]
    assert len(load_problems(f"hf:{tmp_path}/sums:test")) == 1
    for source in (f"hf:{tmp_path}/none", "hf:"):
        with pytest.raises(UserError, match=f"^{source}: "):
            load_problems(source)
