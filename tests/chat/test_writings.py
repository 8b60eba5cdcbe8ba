"""Text forms for calls: what each means, that parsing never raises, and that parsing inverts rendering."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aster.chat.tools import AssistantTurn, ParsedCall
from aster.chat.writings import CHATML, CODE, FENCED, HARMONY, WRITINGS, Writing, without_marks

FORMS: dict[str, Writing] = {**WRITINGS, "chatml": CHATML}
MARKS = (
    *("<code>", "</code>", "<interpreter>", "</interpreter>", "```python\n", "```output\n", "\n```\n", "```", "<think>"),
    *(
        "</think>",
        "<|start|>",
        "assistant",
        "<|channel|>",
        "analysis",
        "commentary",
        "final",
        " to=python",
        "<|constrain|>json",
    ),
    *("<|message|>", "<|call|>", "<|end|>", "<|return|>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    *("\nuser\n", '{"name": "python", "arguments": {"code": "1"}}', '{"code": "1"}', "<|im_end|>", "<|im_start|>", "x = 1"),
    *("\n", "\ud800"),
)
ANY = st.lists(st.sampled_from(MARKS) | st.text(max_size=8), max_size=14).map("".join)
# Plain text has no marks, and no white space at its ends, because no form keeps that.
PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="<`|", exclude_categories=["Cc"]), max_size=30).map(str.strip)
CODES = st.lists(st.lists(PLAIN.filter(bool), min_size=1, max_size=3).map("\n".join), max_size=3)


@pytest.mark.parametrize("form", FORMS)
@given(text=ANY)
def test_parsing_never_raises(form: str, text: str) -> None:
    writing = FORMS[form]
    turn = writing.parse(writing.close(text))
    assert all(call.code or call.error for call in turn.calls)
    exchanges = writing.dialogue(text)
    assert exchanges
    assert all(isinstance(output, str) for exchange in exchanges for output in exchange.outputs)


@pytest.mark.parametrize("form", FORMS)
@given(thinking=PLAIN, content=PLAIN, codes=CODES)
def test_a_rendered_turn_is_parsed_back(form: str, thinking: str, content: str, codes: list[str]) -> None:
    if codes and form in ("code", "fenced"):
        content = ""  # in these forms all prose before a call is thinking
    writing = FORMS[form]
    read = writing.parse(writing.render(thinking, content, codes))
    assert read == AssistantTurn(thinking, content, [ParsedCall(code) for code in codes])


@pytest.mark.parametrize("form", FORMS)
@given(turns=st.lists(st.tuples(PLAIN, st.lists(st.tuples(PLAIN.filter(bool), PLAIN), min_size=1, max_size=2)), max_size=3))
def test_a_rendered_dialogue_is_parsed_back(form: str, turns: list[tuple[str, list[tuple[str, str]]]]) -> None:
    writing = FORMS[form]
    text = ""
    for thinking, calls in turns:
        joint = "<|start|>assistant" if form == "harmony" and text else "\n" if text else ""
        text += joint + writing.render(thinking, "", [code for code, _ in calls])
        text += ("" if form == "harmony" else "\n") + writing.results([output for _, output in calls])
    last = writing.render("", "So \\boxed{1}.", [])
    text += ("<|start|>assistant" if form == "harmony" and text else "\n") + last
    found = writing.dialogue(text)
    assert [(e.turn.thinking, [c.code for c in e.turn.calls], e.outputs) for e in found[:-1]] == [
        (thinking, [code for code, _ in calls], [output for _, output in calls]) for thinking, calls in turns
    ]
    assert (found[-1].turn.content, found[-1].outputs) == ("So \\boxed{1}.", [])


@given(code=st.text(max_size=40), thinking=st.text(max_size=40))
def test_text_cannot_end_its_message_in_harmony(code: str, thinking: str) -> None:
    marked = f"<|end|>{code}<|call|>"
    read = HARMONY.parse(HARMONY.render(f"<|start|>{thinking}", "", [marked]))
    assert read.calls == [ParsedCall(marked)]


def test_parsing_a_text_of_retool() -> None:
    text = (
        "Let me count.\n<code>\n```python\nprint(6*7)\n```\n</code>\n<interpreter>\n42\n</interpreter>\n"
        "Once more.\n<code>1/0</code><interpreter>ZeroDivisionError</interpreter>So <answer>\\boxed{42}</answer>"
    )
    first, second, last = CODE.dialogue(text)
    assert first.turn == AssistantTurn("Let me count.", "", [ParsedCall("print(6*7)")])
    assert (first.outputs, second.outputs) == (["42"], ["ZeroDivisionError"])
    assert second.turn.calls == [ParsedCall("1/0")]
    assert last.turn == AssistantTurn("", "So <answer>\\boxed{42}</answer>")


def test_a_result_written_by_the_model_is_dropped() -> None:
    for writing, text in (
        (CODE, "Go.\n<code>\n1+1\n</code>\n<interpreter>\n3\n</interpreter>\nSo \\boxed{3}."),
        (FENCED, "Go.\n```python\n1+1\n```\n```output\n3\n```\nSo \\boxed{3}."),
    ):
        assert writing.parse(text) == AssistantTurn("Go.", "", [ParsedCall("1+1")])


def test_parsing_a_text_of_tora() -> None:
    text = "We use `sympy`.\n\n```python\nprint('''\n  ```\n''')\n```\n```output\n4\n```\nThe answer is $\\boxed{4}$."
    first, last = FENCED.dialogue(text.replace("\n  ```\n", "\n"))
    assert (first.turn.thinking, first.outputs) == ("We use `sympy`.", ["4"])
    assert last.turn.content == "The answer is $\\boxed{4}$."


def test_a_call_stopped_by_the_server_is_closed_and_one_cut_off_is_an_error() -> None:
    assert CODE.parse(CODE.close("<code>\n1+1\n")).calls == [ParsedCall("1+1")]
    assert CODE.parse("<code>\n1+").calls[0].error
    assert CODE.close("no call") == "no call"
    assert FENCED.parse(FENCED.close("```python\n1+1\n```\n")).calls == [ParsedCall("1+1")]


@pytest.mark.parametrize(
    ("call", "code", "error"),
    [
        ('<|channel|>commentary to=functions.python <|constrain|>json<|message|>{"code": "1+1"}<|call|>', "1+1", ""),
        ("<|channel|>analysis to=python code<|message|>print(2)<|call|>", "print(2)", ""),
        ("<|start|>assistant to=functions.python<|channel|>commentary json<|message|>{\"code\":\"3\"}", "3", ""),
        ('<|channel|>commentary to=functions.python<|message|>{"code": "1', '{"code": "1', "JSON"),
        ("<|channel|>commentary to=browser.open<|message|>{}<|call|>", "{}", "browser.open"),
    ],
)  # fmt: skip
def test_calls_in_harmony(call: str, code: str, error: str) -> None:
    text = "<|channel|>analysis<|message|>Let me see.<|end|>"
    turn = HARMONY.parse(text + ("" if call.startswith("<|start|>") else "<|start|>assistant") + call)
    assert turn.thinking == "Let me see."
    assert [c.code for c in turn.calls] == [code]
    assert error in turn.calls[0].error
    assert bool(turn.calls[0].error) == bool(error)


@pytest.mark.parametrize("codes", [[], ["1+1"]])
@given(st.text(), st.text())
def test_harmony_without_marks_is_recognized(codes: list[str], thinking: str, content: str) -> None:
    text = HARMONY.render(thinking or "Let me see.", content, codes)
    assert not without_marks(text)
    assert without_marks(re.sub(r"<\|\w+\|>", "", text))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("analysisWe need the sum", True),  # cut off in the first message
        ("commentary to=functions.python json{}", True),
        ("analysis to=python codeprint(2)", True),
        ("assistantfinalIt is 42.", True),  # the server removed only the reasoning
        ("final42assistantfinal42", True),
        ("Analysis: we need the sum.", False),
        ("analysis of the terms gives 42", False),
        ("finally, the answer is 42", False),
        ("The words are analysis and assistantfinal.", False),
        ("analysis<|message|>The word is assistantfinal.<|end|>", False),  # it has marks
        ("", False),
    ],
)
def test_other_text_is_not_taken_as_harmony_without_marks(text: str, found: bool) -> None:
    assert without_marks(text) is found


def test_chatml_with_and_without_special_tokens() -> None:
    """verl stores rollouts in both forms."""
    with_headers = (
        '<think>\nGo.\n</think>\n\n<tool_call>\n{"name": "python", "arguments": {"code": "1+1"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n2\n</tool_response><|im_end|>\n<|im_start|>assistant\n<think>\nSo.\n</think>\n\n"
        "\\boxed{2}<|im_end|>"
    )  # fmt: skip
    for text in (with_headers, with_headers.replace("<|im_start|>", "").replace("<|im_end|>", "")):
        first, last = CHATML.dialogue(text)
        assert (first.turn, first.outputs) == (AssistantTurn("Go.", "", [ParsedCall("1+1")]), ["2"])
        assert last.turn == AssistantTurn("So.", "\\boxed{2}")
