"""Layouts of other projects: rows in each one's documented form are read completely, and rows with faults are reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from aster.chat.qwen3 import TOOL_SCHEMA
from aster.data.formats.base import guess_status
from aster.data.formats.importing import Imported, describe, import_set
from aster.data.formats.rows import read_rows
from aster.data.problems import BOX_REQUEST
from aster.data.sets import iterate_set
from aster.environments import PythonMath, transcript_scorer
from aster.errors import UserError
from aster.types import CallStatus, StopReason

SCORE = transcript_scorer(PythonMath())
CODE = "v = 6*7\nprint(v)"
CALL = {"type": "function", "function": {"name": "code_interpreter", "arguments": json.dumps({"code": CODE})}}
RETOOL_PROMPT = (
    "Solve the following problem step by step. You now have the ability to selectively write executable Python code to enhance "
    "your reasoning process. [...]\n\n*user question:*\nAnswer the following Math Problem and put the answer in the format of "
    "\\boxed{answer}\n\nWhat is 6*7?\n\n\nRemember to place the final answer in the last part using the format: \n<answer>\n"
    "\\boxed{'The final answer goes here.'}\n</answer>"
)
QWEN_SYSTEM = (
    "You are careful.\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n<tools>\n</tools>"
)
ROLLOUT = (
    "Compute.\n</think>\n\n<tool_call>\n" + json.dumps({"name": "python", "arguments": {"code": CODE}}) + "\n</tool_call>"
    "<|im_end|>\n<|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>\n<|im_start|>assistant\n<think>\nSo.\n</think>"
    "\n\nIt is \\boxed{42}.<|im_end|>"
)


def bare(text: str) -> str:
    """The text as decoded without special tokens."""
    return text.replace("<|im_start|>", "").replace("<|im_end|>", "")


ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "OpenAI's messages, arguments as text": (
        "messages",
        {
            "messages": [
                {"role": "system", "content": "You are careful."},
                {"role": "user", "content": "What is 6*7?"},
                {"role": "assistant", "content": None, "reasoning_content": "Compute.", "tool_calls": [{"id": "a", **CALL}]},
                {"role": "tool", "tool_call_id": "a", "name": "code_interpreter", "content": "42"},
                {"role": "assistant", "content": [{"type": "text", "text": "It is \\boxed{42}."}], "reasoning": "So."},
            ],
            "tools": [TOOL_SCHEMA],
            "answer": "42",
        },
    ),
    "Open-AgentRL's messages, thinking in the content, arguments as an object": (
        "messages",
        {
            "messages": [
                {"role": "system", "content": "You are careful.", "tool_calls": None},
                {"role": "user", "content": "What is 6*7?", "tool_calls": None},
                {
                    "role": "assistant",
                    "content": "<think>\nCompute.\n</think>\n",
                    "tool_calls": [{"function": {"arguments": {"code": CODE}, "name": "code_interpreter"}, "type": "function"}],
                },
                {"role": "tool", "content": "42", "tool_calls": None},
                {"role": "assistant", "content": "<think>\nSo.\n</think>\nIt is \\boxed{42}.", "tool_calls": None},
            ],
            "tools": [{"type": "function", "function": {"name": "code_interpreter"}}],
            "reward_model": {"ground_truth": "42"},
        },
    ),
    "LLaMA-Factory's conversations": (
        "llamafactory",
        {
            "conversations": [
                {"from": "human", "value": "What is 6*7?"},
                {
                    "from": "function_call",
                    "value": "<think>\nCompute.\n</think>\n\n" + json.dumps({"name": "python", "arguments": {"code": CODE}}),
                },
                {"from": "observation", "value": "42"},
                {"from": "gpt", "value": "<think>\nSo.\n</think>\n\nIt is \\boxed{42}."},
            ],
            "system": "You are careful.",
            "tools": json.dumps([TOOL_SCHEMA]),
            "answer": 42,
        },
    ),
    "the reproduction's roles function and tool": (
        "llamafactory",
        {
            "conversations": [
                {"role": "system", "content": "You are careful."},
                {"role": "user", "content": "What is 6*7?"},
                {
                    "role": "function",
                    "content": "<think>Compute.</think>\n<tool_call>\n"
                    + json.dumps({"name": "python", "arguments": {"code": CODE}})
                    + "\n</tool_call>",
                },
                {"role": "tool", "content": "<tool_response>\n42\n</tool_response>"},
                {"role": "assistant", "content": "<think>So.</think>\nIt is \\boxed{42}."},
            ],
            "ground_truth": "42",
        },
    ),
    "ReTool-SFT": (
        "retool",
        {
            "messages": [
                {"role": "user", "content": RETOOL_PROMPT},
                {
                    "role": "assistant",
                    "content": f"Compute.\n<code>\n```python\n{CODE}\n```\n</code>\n<interpreter>\n42\n</interpreter>\n"
                    "<think>So.</think><answer>\nIt is \\boxed{42}.\n</answer>",
                },
            ],
            "answer": "42",
        },
    ),
    "ToRA's output": (
        "tora",
        {
            "idx": 7,
            "question": "What is 6*7?",
            "gt_cot": "...",
            "gt": "42",
            "code": [f"Compute.\n\n```python\n{CODE}\n```\n```output\n42\n```\n<think>So.</think>It is \\boxed{{42}}."],
            "pred": ["42"],
            "report": [["Done"]],
            "score": [True],
        },
    ),
    "a rollout of verl, with special tokens": (
        "verl_rollout",
        {
            "input": f"<|im_start|>system\n{QWEN_SYSTEM}<|im_end|>\n<|im_start|>user\nWhat is 6*7?<|im_end|>\n"
            "<|im_start|>assistant\n<think>\n",
            "output": ROLLOUT,
            "gts": "42",
            "score": 1.0,
            "step": 3,
        },
    ),
    "a rollout of verl, without special tokens": (
        "verl_rollout",
        {
            "input": f"system\n{QWEN_SYSTEM}\nuser\nWhat is 6*7?\nassistant\n<think>\n",
            "output": bare(ROLLOUT),
            "gts": "42",
            "score": 1.0,
            "step": 3,
            "acc": True,
        },
    ),
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_documented_rows_are_read_completely(name: str, ending: str, tmp_path: Path) -> None:
    layout, row = ROWS[name]
    source, out = tmp_path / f"source.{ending}", tmp_path / "set.jsonl"
    if ending == "parquet":
        # A Parquet column has one type, so content must be text.
        row = json.loads(
            json.dumps(row).replace('[{"type": "text", "text": "It is \\\\boxed{42}."}]', '"It is \\\\boxed{42}."')
        )
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), source)
    else:
        source.write_text(json.dumps(row if ending == "jsonl" else [row]))
    report = import_set(source, layout, out, score=SCORE)
    (found,) = iterate_set(out)
    assert report.unread == 0
    assert (found.prompt, found.expected) == ("What is 6*7?", "42")
    assert [(s.thinking, s.text) for s in found.steps] == [("Compute.", ""), ("So.", "It is \\boxed{42}.")]
    assert [(c.code, c.status, c.output) for c in found.calls] == [(CODE, CallStatus.OK, "42")]
    assert (found.answer, found.reward, found.stop_reason) == ("42", 1.0, StopReason.ANSWERED)
    assert found.system == ("You are careful." if layout not in ("retool", "tora") else "")
    assert report.notes == {"answer verified: right": 1}


def test_a_row_of_tora_may_hold_several_attempts_and_bare_programs(tmp_path: Path) -> None:
    cut = "Go.\n```python\nprint(6*7)\n```\n```output\n42\n```\n\nReach max function call limit."
    codes = ["print(6*7)", "print(6*8)", cut]
    row = {"question": "6*7?", "gt": "42", "code": codes, "report": ["Done", "Done", "Done"], "pred": ["42", "48", "42"]}
    (tmp_path / "tora.jsonl").write_text(json.dumps(row))
    import_set(tmp_path / "tora.jsonl", "tora", tmp_path / "set.jsonl", score=SCORE)
    first, second, third = iterate_set(tmp_path / "set.jsonl")
    assert (third.stop_reason, third.answer, third.reward, third.calls[0].output) == (StopReason.TOKEN_BUDGET, None, 0.0, "42")
    assert [(t.sample, t.answer, t.reward, t.tool_calls) for t in (first, second)] == [(0, "42", 1.0, 1), (1, "48", 0.0, 1)]


def test_unreadable_rows_are_grouped_by_reason_with_their_lines(tmp_path: Path) -> None:
    user, turn = {"role": "user", "content": "6*7?"}, {"role": "assistant", "content": "\\boxed{42}"}
    calling = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    searching = {"role": "assistant", "tool_calls": [{"function": {"name": "search", "arguments": {"query": "x"}}}]}
    result = {"role": "tool", "content": "NameError: name 'v' is not defined"}
    dialogues: list[Any] = [
        [user, calling, result, turn],
        [user, calling, turn],
        [user, result],
        [turn, user, turn],
        [user, turn, user, turn],
        [user, searching],
        [user, turn, turn],
        [user],
        None,
        [user, calling],
    ]
    lines = [json.dumps({"messages": messages, "id": number}) for number, messages in enumerate(dialogues)]
    lines += [json.dumps({"messages": "[" * 100_000}), json.dumps({"messages": [user, turn], "aster": "[" * 100_000})]
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines, "{", "3"]) + "\n")
    report = import_set(tmp_path / "rows.jsonl", "messages", tmp_path / "set.jsonl", score=SCORE)
    found = list(iterate_set(tmp_path / "set.jsonl"))
    assert [t.problem_id for t in found] == ["rows-0", "rows-9"]
    assert [c.status for c in found[0].calls] == [CallStatus.ERROR]
    assert (report.rows, report.unread, report.attempts, report.problems, report.calls.total()) == (14, 12, 2, 2, 2)
    # Each fault has a reason of its own; lines 4 and 5 have the same fault.
    reasons = {tuple(report.examples[reason]): reason for reason in report.unreadable}
    alone = [(f"line {number}",) for number in (2, 3, 6, 7, 8, 9, 11, 12, 13, 14)]
    assert set(reasons) == {*alone, ("line 4", "line 5")}
    assert "search" in reasons["line 6",]
    assert "aster" in reasons["line 12",]
    assert ["line 10"] in [report.examples[note] for note in report.notes]
    text = describe(report, Path("rows.jsonl"), "messages")
    assert "2 of 14" in text
    assert "line 4, line 5" in text


def test_nan_is_read_as_a_missing_answer_and_id(tmp_path: Path) -> None:
    dialogue = [{"role": "user", "content": "6*7?"}, {"role": "assistant", "content": "\\boxed{42}"}]
    row = {"messages": dialogue, "id": float("nan"), "answer": float("nan"), "label": 42.0}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    import_set(tmp_path / "rows.jsonl", "messages", tmp_path / "set.jsonl", score=SCORE)
    (found,) = iterate_set(tmp_path / "set.jsonl")
    assert (found.expected, found.reward) == ("42", 1.0)
    assert found.problem_id != "nan"


def test_answers_come_from_the_file_of_problems(tmp_path: Path) -> None:
    asking = f"What is 2+2?\n{BOX_REQUEST}"
    problems = [
        {"id": "by-id", "prompt": "What is 6*7?", "answer": "42"},
        {"id": "by-prompt", "prompt": asking, "answer": "4"},
    ]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(p) + "\n" for p in problems))
    rows = [
        {"id": "by-id", "messages": [{"role": "user", "content": "6*7?"}, {"role": "assistant", "content": "\\boxed{42}"}]},
        {"messages": [{"role": "user", "content": "What is  2+2?"}, {"role": "assistant", "content": "\\boxed{5}"}]},
        {"messages": [{"role": "user", "content": "And 1+1?"}, {"role": "assistant", "content": "\\boxed{2}"}]},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    report = import_set(tmp_path / "rows.json", "messages", tmp_path / "set.jsonl", tmp_path / "problems.jsonl", score=SCORE)
    found = list(iterate_set(tmp_path / "set.jsonl"))
    assert [(t.problem_id, t.expected, t.reward) for t in found[:2]] == [("by-id", "42", 1.0), ("by-prompt", "4", 0.0)]
    assert found[2].reward is None
    assert report.notes == {"answer verified: right": 1, "answer verified: wrong": 1, "the right answer is not known": 1}


@pytest.mark.parametrize(
    ("name", "content", "layout", "message"),
    [
        ("none.jsonl", None, "messages", r"none\.jsonl"),
        ("rows.csv", "a,b", "messages", r"rows\.csv: .*\.jsonl, \.jsonl\.gz, \.json, \.parquet"),
        ("rows.jsonl", '{"text": "x"}\n', "messages", r"rows\.jsonl: .*messages"),
        ("rows.jsonl", "", "messages", r"rows\.jsonl: .*empty"),
        ("rows.json", '{"a": 1}', "messages", r"rows\.json: .*array"),
        ("rows.json", '[{"a": 1}, {"a": ', "messages", r"rows\.json: .*row 1:"),
        ("rows.json", '[{"a": 1}] [{"a": 2}]', "messages", r"rows\.json: .*row 1;"),
        ("rows.jsonl", "{}", "verl_prompts", "--layout verl_prompts: .*messages, llamafactory, retool, tora, verl_rollout"),
    ],
)
def test_a_failed_import_names_the_fault_and_keeps_an_existing_set(
    name: str, content: str | None, layout: str, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    (tmp_path / "set.jsonl").write_text("what was here before")
    with pytest.raises(UserError, match=message):
        import_set(tmp_path / name, layout, tmp_path / "set.jsonl", score=SCORE)
    assert (tmp_path / "set.jsonl").read_text() == "what was here before"
    with pytest.raises(UserError, match=r"--out .*set\.json: "):
        import_set(tmp_path / name, "messages", tmp_path / "set.json", score=SCORE)


@pytest.mark.parametrize(
    ("output", "status"),
    [
        ("42", CallStatus.OK),
        ("Error rate: 0.5", CallStatus.OK),
        ("1\nZeroDivisionError: division by zero", CallStatus.ERROR),
        ("sympy.core.sympify.SympifyError: x", CallStatus.ERROR),
        ("Traceback (most recent call last):\n  ...\nOops", CallStatus.ERROR),
        ("TimeoutError: Timed out after 10 s", CallStatus.TIMEOUT),
        ("execution timed-out", CallStatus.TIMEOUT),
        ("the time outside is 3", CallStatus.OK),
        ("lifetime out of range: 0", CallStatus.OK),
    ],
)
def test_the_status_of_a_call_is_guessed_from_its_output(output: str, status: CallStatus) -> None:
    assert guess_status(output) is status


def test_an_array_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aster.data.formats.rows.PIECE", 7)
    rows = [{"n": number, "text": "]},{[é\\" * number} for number in range(20)]
    (tmp_path / "rows.json").write_text(json.dumps(rows, indent=1))
    assert [row for _, row in read_rows(tmp_path / "rows.json")] == rows


def test_the_report_of_a_clean_import_is_one_line() -> None:
    assert describe(Imported(rows=1, attempts=1, problems=1), Path("x"), "tora").count("\n") == 0
