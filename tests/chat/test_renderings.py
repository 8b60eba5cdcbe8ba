"""Our rendering is the same as that of Qwen3's own template (stored by make_renderings.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aster.chat import Qwen3Dialect
from aster.chat.qwen3 import TOOL_SCHEMA
from aster.lab.tokenizer import build_tokenizer
from tests.chat.make_renderings import DIALOGUES, RENDERINGS, messages_of

RECORDS = json.loads(Path(RENDERINGS).read_text(encoding="utf-8"))


def test_all_dialogues_are_stored() -> None:
    assert [record["dialogue"] for record in RECORDS] == DIALOGUES


@pytest.mark.parametrize("record", RECORDS, ids=range(len(RECORDS)))
def test_joined_pieces_give_qwen3s_text(record: dict[str, Any]) -> None:
    dialogue = record["dialogue"]
    # With Qwen3-1.7B the model writes <think> itself.
    dialect = Qwen3Dialect(build_tokenizer(), open_thinking=False)
    ids = dialect.prompt_ids(dialogue["prompt"], tools=dialogue["tools"], system=dialogue.get("system", ""))
    for thinking, content, calls in dialogue["turns"]:
        ids += dialect.turn_ids(thinking, content, [code for code, _ in calls])
        ids += dialect.tool_ids([output for _, output in calls]) if calls else []
    ending = "\n" if ids[-1] == dialect.end_id else ""
    assert dialect.decode(ids) + ending == record["text"]


@pytest.mark.parametrize("record", RECORDS, ids=range(len(RECORDS)))
def test_the_shipped_template_writes_qwen3s_text(record: dict[str, Any]) -> None:
    dialogue = record["dialogue"]
    going_on = record["text"].endswith("<|im_start|>assistant\n")
    text = build_tokenizer().apply_chat_template(
        messages_of(dialogue),
        tools=[TOOL_SCHEMA] if dialogue["tools"] else None,
        tokenize=False,
        add_generation_prompt=going_on,
    )
    # The shipped template opens the thinking, as that of Qwen3-*-Thinking-2507 does.
    assert text == record["text"] + ("<think>\n" if going_on else "")
