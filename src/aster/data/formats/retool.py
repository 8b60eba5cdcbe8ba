"""ReTool-SFT: one answer per row, with code in ``<code>`` and its results in ``<interpreter>`` inside the text."""

from __future__ import annotations

from aster.chat.writings import CODE
from aster.data.formats.base import Layout, Unreadable, add_exchanges, blank, finish
from aster.data.formats.messages import text_of
from aster.jsonl import Row
from aster.transcript import Transcript

QUESTION = "*user question:*"
ASKED = (
    "Answer the following Math Problem and put the answer in the format of \\boxed{answer}",
    "Remember to place the final answer in the last part using the format:",
)
"""The instructions before and after the problem in the set's prompts."""


def read(row: Row) -> list[Transcript]:
    """Read a row."""
    messages = row.get("messages") or row.get("conversations")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise Unreadable("no messages")
    texts = [(str(m.get("role", m.get("from"))), text_of(m.get("content", m.get("value")))) for m in messages]
    prompts = [text for role, text in texts if role in ("user", "human")]
    answers = [text for role, text in texts if role in ("assistant", "gpt")]
    if len(prompts) != 1 or len(answers) != 1:
        raise Unreadable("not one prompt and one answer")
    transcript = blank(row, problem(prompts[0]))
    add_exchanges(transcript, CODE.dialogue(answers[0]))
    for step in transcript.steps:
        # The instructions that ask for these tags are removed, so the tags are removed as well.
        step.text = step.text.replace("<answer>", "").replace("</answer>", "").strip()
    return [finish(transcript)]


def problem(prompt: str) -> str:
    """Return the problem without the set's instructions, which ask for tags that our dialect does not use."""
    if QUESTION not in prompt:
        return prompt
    text = prompt.partition(QUESTION)[2].strip()
    text = text.removeprefix(ASKED[0]).partition(ASKED[1])[0]
    return text.strip()


RETOOL = Layout("retool", "ReTool-SFT: <code> and <interpreter> in the text", read)
