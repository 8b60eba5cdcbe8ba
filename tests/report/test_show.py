"""One trajectory as text, and the splitting of assistant turns into blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from aster.cli import main
from aster.data.text import split_assistant, turn_texts
from aster.errors import UserError
from aster.report.show import show
from aster.run import RunFolder
from tests.report.conftest import attempt, byte_tokenizer, fill


def test_show_prints_turns_calls_and_reward(filled_run: RunFolder) -> None:
    result = CliRunner().invoke(main, ["show", str(filled_run.path), "--index", "1"])
    assert result.exit_code == 0, result.output
    for expected in (
        "rl/step_000012 1: problem p2, sample 1",
        "reward 0 ",
        "stop reason answered, 3 tool calls",
        "answer '4', expected '4'",
        "--- 1 assistant",
        "[call: ok, 0.010 s]\n    print(0)",
        "[output]\n    printed 2",
        "--- 7 assistant",
    ):
        assert expected in result.output


def test_show_reads_the_named_file(filled_run: RunFolder) -> None:
    assert show(filled_run, "rl", "step_000011").startswith("rl/step_000011 0: problem p0")
    assert show(filled_run, "evaluate/sft").startswith("evaluate/sft/all 0: problem p0")


@pytest.mark.parametrize(
    ("stage", "name", "index", "message"),
    [
        ("lr", None, 0, "lr/trajectories: .*'lr'"),
        ("rl", "step_000013", 0, "'step_000013'; .*step_000011 to step_000012"),
        ("rl", None, 2, "--index 2: rl/step_000012 has 2 trajectories"),
    ],
)
def test_the_error_names_what_does_not_exist(
    filled_run: RunFolder, stage: str, name: str | None, index: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        show(filled_run, stage, name, index)


def test_the_error_names_a_broken_and_a_missing_tokenizer(tmp_path: Path) -> None:
    run = fill(tmp_path / "run")
    file = run.path / "tokenizer" / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json: "):
        show(run, "rl")
    file.unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json: "):
        show(run, "rl")


def test_turn_texts_cover_every_token(filled_run: RunFolder) -> None:
    trajectory = attempt("p1", 0, calls=2, reward=1.0, extra="é☃")
    assert "".join(turn_texts(filled_run, trajectory)) == byte_tokenizer().decode(trajectory.token_ids)


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("<think>a</think>b", [("thinking", "a"), ("text", "b")]),
        ("a\n</think>\n\nb", [("thinking", "a"), ("text", "b")]),
        ("<think>cut", [("thinking", "cut")]),
        ('x<tool_call>\n{"a": 1}\n</tool_call>', [("text", "x"), ("call", '{"a": 1}')]),
        ("<think>a</think><tool_call>1</tool_call><tool_call>2", [("thinking", "a"), ("call", "1"), ("call", "2")]),
        ("plain", [("text", "plain")]),
        ("", []),
    ],
)
def test_assistant_turns_are_split_at_their_tags(text: str, blocks: list[tuple[str, str]]) -> None:
    assert split_assistant(text) == blocks


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["<think>", "</think>", "<tool_call>", "</tool_call>", "word", "1 < 2"]), max_size=12))
def test_splitting_loses_no_word(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert "".join(block for _, block in split_assistant(text)).count("word") == text.count("word")
