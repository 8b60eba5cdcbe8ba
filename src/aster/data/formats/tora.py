"""ToRA's output files: a row is a problem with a list of attempts in ``code``, or one attempt in ``output`` or ``generation``.

An attempt is a text with reasoning, code in ```` ```python ```` and results in ```` ```output ````. An attempt without fences
is only code; its output is in ``pred`` or ``report``, where ``Done`` means that it printed nothing.
"""

from __future__ import annotations

from typing import Any

from aster.chat.tools import AssistantTurn, ParsedCall
from aster.chat.writings import FENCED, Exchange
from aster.data.formats.base import Layout, Unreadable, add_exchanges, blank, finish
from aster.jsonl import Row
from aster.transcript import Transcript

PROMPTS = ("question", "problem", "input", "prompt")
CUT = "Reach max function call limit."
"""Text at the end of an attempt that was stopped after its last call."""
TEXTS = ("code", "output", "generation", "trajectory", "solution")


def read(row: Row) -> list[Transcript]:
    """Read a row: one transcript for each attempt."""
    prompt = next((row[name] for name in PROMPTS if isinstance(row.get(name), str) and row[name].strip()), "")
    texts = next((_list(row[name]) for name in TEXTS if row.get(name)), [])
    if not texts or not all(isinstance(text, str) for text in texts):
        raise Unreadable("no code or output")
    reports, answers = _list(row.get("report")), _list(row.get("pred"))
    found = []
    for number, text in enumerate(texts):
        transcript = blank(row, prompt)
        transcript.sample = number
        report = reports[number] if number < len(reports) else None
        answer = answers[number] if number < len(answers) else None
        add_exchanges(transcript, _attempt(text, report, answer))
        found.append(finish(transcript))
    return found


def _attempt(text: str, report: Any, answer: Any) -> list[Exchange]:
    if "```" in text:
        exchanges = FENCED.dialogue(text.rstrip().removesuffix(CUT))
        last = exchanges[-1]
        if last.turn.calls and not last.outputs and report is not None:
            last.outputs.append(_plain(report))
        return exchanges
    # Only a program, as in PAL. Its output is the answer; if it failed, the report says how.
    printed = str(answer).strip() if isinstance(answer, str | int | float) else ""
    exchanges = [Exchange(AssistantTurn("", "", [ParsedCall(text.strip("\n"))]), [printed or _plain(report)])]
    if printed:
        exchanges.append(Exchange(AssistantTurn("", f"\\boxed{{{printed}}}")))
    return exchanges


def _plain(report: Any) -> str:
    text = report[-1] if isinstance(report, list) and report else report
    return "" if text in (None, "Done", []) else str(text)


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


TORA = Layout("tora", "ToRA's output files: fenced code and output", read)
