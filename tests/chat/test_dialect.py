"""Pieces join to the template's rendering; prompts and outputs cannot end a turn; parsing inverts rendering, never raises."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aster.chat import AssistantTurn, ParsedCall, Qwen3Dialect
from aster.chat.qwen3 import TOOL_SCHEMA, neutralize, render_call
from aster.types import Trajectory

PROPERTY = settings(max_examples=60, deadline=None)
CONTROL = [
    "<|im_end|>",
    "<|im_start|>",
    "<|endoftext|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "</tool_response>",
]
LOOKALIKES = ["< |im_end|>", "|im_end|>", "<im_end>", "<tool", "tool_call>", "<<", "</", "</s>", "\\u003c|im_end|>"]
PIECES = [
    "v=v+1\nv",
    "print('é')",
    '"',
    "'",
    "\\",
    "\\n",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    " ",
    "{",
    '"}}',
    "𝕏🎲",
    "Ġ",
    "≮",
    "\x00",
    "end",
]
words = st.lists(st.sampled_from([*PIECES, *LOOKALIKES]) | st.text(max_size=8), max_size=8).map("".join)
hostile = st.lists(st.sampled_from([*PIECES, *CONTROL]) | st.text(max_size=4), max_size=8).map("".join)
tidy = words.map(neutralize).map(str.strip)
code = words.filter(lambda text: neutralize(text) == text)
call = st.tuples(code, hostile)
turn = st.tuples(tidy.filter(bool), tidy, st.lists(call, min_size=1, max_size=3))
final = st.tuples(tidy.filter(bool), tidy)


def template_messages(prompt: str, turns: list[Any], last: tuple[str, str]) -> list[dict[str, Any]]:
    """The messages of a dialogue for the chat template. Prompt and outputs are neutralized, as the dialect does."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": neutralize(prompt)}]
    for thinking, content, calls in turns:
        requests = [{"function": {"name": "python", "arguments": {"code": source}}} for source, _ in calls]
        messages.append({"role": "assistant", "reasoning_content": thinking, "content": content, "tool_calls": requests})
        messages += [{"role": "tool", "content": neutralize(output)} for _, output in calls]
    return [*messages, {"role": "assistant", "reasoning_content": last[0], "content": last[1]}]


def assemble(dialect: Qwen3Dialect, prompt: str, turns: list[Any], last: tuple[str, str], tools: bool = True) -> Trajectory:
    """Build the trajectory of a dialogue as a rollout does."""
    trajectory = Trajectory("p", 0, 0)
    trajectory.append("prompt", dialect.prompt_ids(prompt, tools=tools))
    for thinking, content, calls in turns:
        ids = dialect.turn_ids(thinking, content, [source for source, _ in calls])
        trajectory.append("assistant", ids, [-1.0] * len(ids))
        trajectory.append("tool", dialect.tool_ids([output for _, output in calls]))
    ids = dialect.turn_ids(*last, [])
    trajectory.append("assistant", ids, [-1.0] * len(ids))
    return trajectory


def sampled_by_template(tokenizer: Any, token_ids: list[int], open_thinking: bool) -> list[int]:
    """The expected loss mask of a whole rendering: 1 from after each assistant header to its <|im_end|>."""
    header = tokenizer.encode("<|im_start|>assistant\n" + ("<think>\n" if open_thinking else ""), add_special_tokens=False)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    mask, inside, index = [0] * len(token_ids), False, 0
    while index < len(token_ids):
        if not inside and token_ids[index : index + len(header)] == header:
            inside = True
            index += len(header)
            continue
        mask[index] = int(inside)
        inside = inside and token_ids[index] != end
        index += 1
    return mask


@pytest.mark.parametrize("open_thinking", [True, False])
@given(prompt=hostile, turns=st.lists(turn, max_size=3), last=final, tools=st.booleans())
@PROPERTY
def test_pieces_join_to_the_templates_rendering(
    tokenizer: Any, open_thinking: bool, prompt: str, turns: list[Any], last: tuple[str, str], tools: bool
) -> None:
    dialect = Qwen3Dialect(tokenizer, open_thinking)
    trajectory = assemble(dialect, prompt, turns, last, tools)
    whole = tokenizer.apply_chat_template(
        template_messages(prompt, turns, last), tools=[TOOL_SCHEMA] if tools else None, tokenize=True, return_dict=False
    )
    # The template ends the last turn with a newline, which is not sampled.
    assert trajectory.token_ids + tokenizer.encode("\n", add_special_tokens=False) == whole
    assert trajectory.loss_mask == sampled_by_template(tokenizer, trajectory.token_ids, open_thinking)


@pytest.mark.parametrize("open_thinking", [True, False])
@given(thinking=tidy, content=tidy, codes=st.lists(hostile, max_size=3))
@PROPERTY
def test_parsing_inverts_rendering(tokenizer: Any, open_thinking: bool, thinking: str, content: str, codes: list[str]) -> None:
    dialect = Qwen3Dialect(tokenizer, open_thinking)
    ids = dialect.turn_ids(thinking, content, codes)
    assert dialect.parse(ids) == AssistantTurn(thinking, content, [ParsedCall(source) for source in codes])
    assert ids.count(dialect.end_id) == 1
    assert ids[-1] == dialect.end_id


@given(prompt=hostile, outputs=st.lists(hostile, min_size=1, max_size=3))
@PROPERTY
def test_prompts_and_outputs_cannot_end_their_turn(tokenizer: Any, prompt: str, outputs: list[str]) -> None:
    dialect = Qwen3Dialect(tokenizer)
    control = {tokenizer.convert_tokens_to_ids(text): text for text in [*CONTROL, "<tool_response>"]}

    def kinds(ids: list[int]) -> list[str]:
        return [control[token] for token in ids if token in control]

    assert kinds(dialect.prompt_ids(prompt, tools=False)) == [
        "<|im_start|>", "<|im_end|>", "<|im_start|>", "<think>",
    ]  # fmt: skip
    response = ["<tool_response>", "</tool_response>"] * len(outputs)
    assert kinds(dialect.tool_ids(outputs)) == ["<|im_start|>", *response, "<|im_end|>", "<|im_start|>", "<think>"]


def test_tool_output_is_otherwise_unchanged(tokenizer: Any) -> None:
    dialect = Qwen3Dialect(tokenizer)
    text = dialect.decode(dialect.tool_ids(["1 < 2 <b> é\n</tool_response><|im_end|>", ""]))
    assert text == (
        "\n<|im_start|>user\n<tool_response>\n1 < 2 <b> é\n< /tool_response>< |im_end|>\n</tool_response>"
        "\n<tool_response>\n\n</tool_response><|im_end|>\n<|im_start|>assistant\n<think>\n"
    )


@pytest.mark.parametrize("open_thinking", [True, False])
@given(data=st.data())
@PROPERTY
def test_parsing_random_tokens_never_raises(tokenizer: Any, open_thinking: bool, data: st.DataObject) -> None:
    tags = [tokenizer.convert_tokens_to_ids(text) for text in CONTROL]
    # A model's vocabulary is often larger than the tokenizer's, because it is padded.
    token = st.integers(0, len(tokenizer) + 200) | st.sampled_from(tags)
    dialect = Qwen3Dialect(tokenizer, open_thinking)
    ids = data.draw(st.lists(token, max_size=40))
    parsed = dialect.parse(ids)
    assert all(call.error or isinstance(call.code, str) for call in parsed.calls)
    assert dialect.parse([*ids, dialect.end_id]) == parsed


GOOD = render_call("1")
MALFORMED = {
    GOOD.removesuffix("</tool_call>"): "</tool_call>",
    "<tool_call>\n{'name': 'python'}\n</tool_call>": "JSON",
    "<tool_call>\n</tool_call>": "JSON",
    '<tool_call>{"name": "python", "arguments": {"code": "a\nb"}}</tool_call>': "JSON",
    "<tool_call>" + "[" * 100_000 + "</tool_call>": "JSON",
    "<tool_call>" + "1" * 5000 + "</tool_call>": "JSON",
    "<tool_call>[1]</tool_call>": '"name": "python"',
    GOOD.replace("python", "search"): '"name": "python"',
    '<tool_call>{"name": "python"}</tool_call>': '"code"',
    '<tool_call>{"name": "python", "arguments": "1"}</tool_call>': '"code"',
    '<tool_call>{"name": "python", "arguments": {"source": "1"}}</tool_call>': '"code"',
    '<tool_call>{"name": "python", "arguments": {"code": 1}}</tool_call>': '"code"',
    '<tool_call>{"name": "python", "arguments": {"code": "\\ud800"}}</tool_call>': "surrogate",
}


@pytest.mark.parametrize(("text", "reason"), MALFORMED.items(), ids=range(len(MALFORMED)))
def test_the_error_of_a_malformed_call_names_the_fault(tokenizer: Any, text: str, reason: str) -> None:
    dialect = Qwen3Dialect(tokenizer)
    parsed = dialect.parse(tokenizer.encode(f"hm\n</think>\n\nSo:\n{text}<|im_end|>", add_special_tokens=False))
    assert parsed.thinking == "hm"
    assert parsed.content == "So:"
    assert [call.code for call in parsed.calls] == [""]
    assert reason in parsed.calls[0].error


def test_good_and_malformed_calls_in_one_turn(tokenizer: Any) -> None:
    dialect = Qwen3Dialect(tokenizer)
    text = f"x\n</think>\n\nA\n{render_call('1')}\n<tool_call>\nno\n</tool_call>\n{render_call('2')}<|im_end|>"
    parsed = dialect.parse(tokenizer.encode(text, add_special_tokens=False))
    assert [(call.code, bool(call.error)) for call in parsed.calls] == [("1", False), ("", True), ("2", False)]


@pytest.mark.parametrize(
    ("text", "opened", "unopened"),
    [
        ("so\n</think>\n\nhi", ("so", "hi"), ("so", "hi")),
        ("<think>\nso\n</think>\n\nhi", ("so", "hi"), ("so", "hi")),
        # No closing tag: thinking that was cut off, or a model that does not think.
        ("\\boxed{1}", ("\\boxed{1}", ""), ("", "\\boxed{1}")),
        ("<think>\n\\boxed{1}", ("\\boxed{1}", ""), ("\\boxed{1}", "")),
        # A call inside the thinking is not a call.
        (f"{GOOD}\n</think>\n\nhi", (GOOD, "hi"), (GOOD, "hi")),
        ("a</think>b</think>c", ("a", "b</think>c"), ("a", "b</think>c")),
    ],
)
def test_where_thinking_ends(tokenizer: Any, text: str, opened: tuple[str, str], unopened: tuple[str, str]) -> None:
    for open_thinking, expected in ((True, opened), (False, unopened)):
        parsed = Qwen3Dialect(tokenizer, open_thinking).parse(tokenizer.encode(text, add_special_tokens=False))
        assert (parsed.thinking, parsed.content, parsed.calls) == (*expected, [])


@given(code=hostile)
@PROPERTY
def test_a_rendered_call_holds_its_code_and_no_control_string(code: str) -> None:
    text = render_call(code)
    inside = text.removeprefix("<tool_call>").removesuffix("</tool_call>")
    assert json.loads(inside) == {"name": "python", "arguments": {"code": code}}
    assert neutralize(inside) == inside


def test_a_tokenizer_without_control_tokens_is_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))
    with pytest.raises(ValueError, match="im_end"):
        Qwen3Dialect(plain)
