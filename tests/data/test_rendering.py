"""Rendering a transcript and transcribing the result gives the same transcript; only assistant turns are trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from aster.chat import Qwen3Dialect
from aster.data.rendering import render, transcribe
from aster.data.sets import iterate_set, write_set
from aster.engines.local.loading import load_tokenizer, resolve
from aster.errors import UserError
from aster.transcript import Step, Transcript, Usage
from aster.types import CallStatus, Problem, StopReason, ToolCall


@pytest.fixture(scope="module")
def dialect() -> Qwen3Dialect:
    return Qwen3Dialect(load_tokenizer(resolve("lab")))


def example() -> Transcript:
    call = ToolCall("print(6*7)", CallStatus.OK, "42", 0.01)
    return Transcript(
        "p1",
        2,
        "6*7?",
        "42",
        [Step("k:a", "", [call, call], 9), Step("", "\\boxed{42}", [], 4)],
        StopReason.ANSWERED,
        "42",
        1.0,
        seed=7,
        author="expert",
        usage=Usage(10, 5, 0.5),
        metadata={"topic": "arithmetic"},
    )


def test_transcribing_a_rendered_transcript_gives_it_back(dialect: Qwen3Dialect) -> None:
    transcript = example()
    trajectory = render(transcript, dialect)
    back = transcribe(trajectory, Problem("p1", "6*7?", "42"), dialect)
    assert [(s.thinking, s.text, s.calls) for s in back.steps] == [(s.thinking, s.text, s.calls) for s in transcript.steps]
    assert (back.answer, back.reward, back.stop_reason, back.sample) == ("42", 1.0, StopReason.ANSWERED, 2)
    trained = [turn.role for turn in trajectory.turns if any(trajectory.loss_mask[turn.start : turn.end])]
    assert trained == ["assistant", "assistant"]
    assert [turn.role for turn in trajectory.turns] == ["prompt", "assistant", "tool", "assistant"]
    assert all(all(trajectory.loss_mask[t.start : t.end]) for t in trajectory.turns if t.role == "assistant")


@pytest.mark.parametrize("name", ["set.jsonl", "set.jsonl.gz"])
def test_a_set_is_read_back_unchanged(tmp_path: Path, name: str) -> None:
    odd = Transcript("p\ud800", 0, "half a pair \udc00\u2028", reward=None)
    assert write_set(tmp_path / name, [example(), odd]) == 2
    assert list(iterate_set(tmp_path / name)) == [example(), odd]


def test_the_error_names_a_broken_line_and_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    write_set(path, [example()])
    path.write_text(path.read_text() + '{"conversations": []}\n')
    with pytest.raises(UserError, match=r"set\.jsonl, line 2"):
        list(iterate_set(path))
    with pytest.raises(UserError, match=r"other\.jsonl"):
        list(iterate_set(tmp_path / "other.jsonl"))
