"""Sets exported for other trainers can be imported again without loss, and have the form that those trainers expect."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aster.data.formats import LAYOUTS
from aster.data.formats.exporting import export_set
from aster.data.formats.importing import import_set
from aster.data.formats.rows import read_rows
from aster.data.sets import iterate_set, write_set
from aster.environments import PythonMath, transcript_scorer
from aster.errors import UserError
from aster.transcript import Step, Transcript, Usage
from aster.types import CallStatus, StopReason, ToolCall

SCORE = transcript_scorer(PythonMath())
CODE = "v = 6*7\nprint(v)"

TEXT = st.lists(
    st.sampled_from(
        [
            *(
                "<think>",
                "</think>",
                "\n</think>\n\n",
                "<tool_call>",
                "</tool_call>",
                "<tool_response>",
                "\n</tool_response>\n",
            ),
            *("<|im_end|>", "\ud800", "\udfff", "\x00", "\u2028", "{", '"', "\\", "\\boxed{1}", "\n", " ", "x"),
        ]
    )
    | st.text(max_size=5),
    max_size=4,
).map("".join)
CALLS = st.builds(ToolCall, TEXT, st.sampled_from(CallStatus), TEXT, st.floats(0, 10))
STEPS = st.builds(Step, TEXT, TEXT, st.lists(CALLS, max_size=3), st.none() | st.integers(0, 9))
TRANSCRIPTS = st.builds(
    Transcript,
    TEXT,
    st.integers(0, 9),
    TEXT,
    TEXT,
    st.lists(STEPS, max_size=3),
    st.none() | st.sampled_from(StopReason),
    st.none() | TEXT,
    st.none() | st.floats(0, 1),
    TEXT,
    TEXT,
    st.floats(0, 1e6),
    st.integers(0, 2**63 - 1),
    TEXT,
    TEXT,
    TEXT,
    TEXT,
    st.none() | st.builds(Usage, st.integers(0, 9), st.integers(0, 9), st.floats(0, 1)),
    st.dictionaries(TEXT, TEXT | st.lists(st.integers(), max_size=2), max_size=1),
)


@pytest.mark.parametrize("layout", ["messages", "llamafactory"])
@pytest.mark.parametrize("ending", ["parquet", "json"])
@settings(max_examples=20, deadline=None)
@given(transcripts=st.lists(TRANSCRIPTS, min_size=1, max_size=3))
def test_an_exported_set_is_imported_unchanged(
    layout: str, ending: str, transcripts: list[Transcript], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("back")
    # As a set stores them: JSON joins the two halves of a surrogate pair into one character.
    transcripts = [Transcript.from_json(json.loads(json.dumps(each.to_json()))) for each in transcripts]
    assert export_set(Path("set"), transcripts, layout, folder / f"out.{ending}") == len(transcripts)
    report = import_set(folder / f"out.{ending}", layout, folder / "set.jsonl", score=SCORE)
    assert list(iterate_set(folder / "set.jsonl")) == transcripts
    assert report.unread == 0


def random_transcript(rng: random.Random, number: int) -> Transcript:
    """A transcript as teachers write them, with text that layouts cannot hold."""
    odd = [
        "",
        "plain",
        "a </think> b",
        "<tool_call>{",
        "half \ud800",
        "tab\tline\nend\n",
        "\n</tool_response>\n<tool_response>\n",
    ]

    def text() -> str:
        return rng.choice(odd) + str(rng.random())

    steps = [
        Step(
            rng.choice(["", text()]),
            rng.choice(["", text()]),
            [ToolCall(text(), rng.choice(list(CallStatus)), text(), rng.random()) for _ in range(rng.randrange(1, 4))],
            rng.choice([None, rng.randrange(1000)]),
        )
        for _ in range(rng.randrange(6))
    ]
    steps.append(Step(text(), text(), [], rng.randrange(100)))
    answer = rng.choice([None, "42"])
    usage = rng.choice([None, Usage(rng.randrange(99), rng.randrange(99), rng.random())])
    reason = rng.choice(list(StopReason))
    return Transcript(
        f"p{number // 3}", number % 3, text(), "42", steps, reason, answer, rng.choice([None, 0.0, 1.0]), text(), usage=usage,
        metadata={"topic": rng.choice(["a", None])}, seed=rng.getrandbits(63), system=rng.choice(["", text()]), setup=text(),
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["messages", "llamafactory"])
def test_a_thousand_transcripts_are_imported_unchanged(layout: str, tmp_path: Path) -> None:
    rng = random.Random(7)
    transcripts = [random_transcript(rng, number) for number in range(1000)]
    write_set(tmp_path / "set.jsonl.gz", transcripts)
    export_set(tmp_path, iterate_set(tmp_path / "set.jsonl.gz"), layout, tmp_path / "out.parquet")
    import_set(tmp_path / "out.parquet", layout, tmp_path / "back.jsonl", score=SCORE)
    assert list(iterate_set(tmp_path / "back.jsonl")) == transcripts


def exported(layout: str, transcript: Transcript, path: Path) -> dict[str, Any]:
    export_set(path, [transcript], layout, path)
    ((_, row),) = read_rows(path)
    assert isinstance(row, dict)
    return row


def test_the_extra_column_does_not_repeat_ordinary_text(tmp_path: Path) -> None:
    call = ToolCall(CODE, CallStatus.ERROR, "42", 0.5)
    transcript = Transcript(
        "p", 0, "6*7?", "42", [Step("a", "", [call, call], 5), Step("b", "\\boxed{42}")], StopReason.ANSWERED
    )
    for layout in ("messages", "llamafactory"):
        row = exported(layout, transcript, tmp_path / f"{layout}.jsonl")
        assert "exact" not in json.loads(row["aster"])
        assert CODE not in row["aster"]


@pytest.mark.parametrize("layout", ["messages", "llamafactory"])
def test_the_text_of_a_changed_row_is_used(layout: str, tmp_path: Path) -> None:
    transcript = Transcript(
        "p", 3, "6*7? \ud800", "42", [Step("a </think>", "\\boxed{42}")], StopReason.ANSWERED, "42", 1.0, seed=5
    )
    row = exported(layout, transcript, tmp_path / "out.jsonl")
    assert LAYOUTS[layout].read is not None
    (tmp_path / "same.jsonl").write_text(json.dumps(row))
    # Change only the dialogue, not the column beside it, which holds the whole attempt.
    others = {key: json.loads(json.dumps(value).replace("6*7?", "6 times 7?")) for key, value in row.items() if key != "aster"}
    assert "exact" in json.loads(row["aster"])
    (tmp_path / "other.jsonl").write_text(json.dumps({**others, "aster": row["aster"]}))
    import_set(tmp_path / "same.jsonl", layout, tmp_path / "a.jsonl", score=SCORE)
    import_set(tmp_path / "other.jsonl", layout, tmp_path / "b.jsonl", score=SCORE)
    assert list(iterate_set(tmp_path / "a.jsonl")) == [transcript]
    (changed,) = iterate_set(tmp_path / "b.jsonl")
    assert changed.prompt.startswith("6 times 7?")
    assert (changed.sample, changed.seed, changed.reward) == (3, 5, 1.0)


def test_the_chat_template_renders_exported_messages_as_our_dialect_renders_the_transcript(tmp_path: Path) -> None:
    from aster.chat import Qwen3Dialect
    from aster.data.rendering import render
    from aster.lab.tokenizer import build_tokenizer

    call = ToolCall("v=6*7\nv", CallStatus.OK, "42", 0.1)
    steps = [Step("a", "", [call]), Step("b", "", [call, call]), Step("c", "\\boxed{42}")]
    transcript = Transcript("p", 0, "6*7?", "42", steps, StopReason.ANSWERED, "42", 1.0)
    row = exported("messages", transcript, tmp_path / "out.parquet")
    tokenizer = build_tokenizer()
    theirs = tokenizer.apply_chat_template(row["messages"], tools=row["tools"], tokenize=False)
    dialect = Qwen3Dialect(tokenizer)
    assert dialect.decode(render(transcript, dialect).token_ids) == theirs.removesuffix("\n")


def test_prompts_for_rl_in_verl(tmp_path: Path) -> None:
    transcripts = [Transcript(f"p{n // 2}", n % 2, f"What is {n // 2}*7?", str(7 * (n // 2)), source="s") for n in range(6)]
    assert export_set(tmp_path, transcripts, "verl_prompts", tmp_path / "out.parquet") == 3
    rows = [row for _, row in read_rows(tmp_path / "out.parquet") if isinstance(row, dict)]
    assert rows[1]["reward_model"] == {"style": "rule", "ground_truth": "7"}
    assert rows[1]["prompt"][0]["content"].startswith("What is 1*7?\nPlease reason")
    with pytest.raises(UserError, match=r"--layout tora: .*messages, llamafactory, verl_prompts"):
        export_set(tmp_path, transcripts, "tora", tmp_path / "out.parquet")
    with pytest.raises(UserError, match=r"out\.csv: .*\.jsonl, \.json, \.parquet"):
        export_set(tmp_path, transcripts, "messages", tmp_path / "out.csv")


@pytest.mark.parametrize(
    "other",
    [
        Transcript("q", 0, "What is 1*7?", ""),
        Transcript("p", 1, "What is 2*7?", "7"),
        Transcript("p", 1, "What is 1*7?", "8"),
    ],
)
def test_prompts_that_rl_cannot_use_are_refused(other: Transcript, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"set\.jsonl: .*'{other.problem_id}'"):
        export_set(Path("set.jsonl"), [Transcript("p", 0, "What is 1*7?", "7"), other], "verl_prompts", tmp_path / "o.json")
    assert not (tmp_path / "o.json").exists()


@pytest.mark.parametrize("layout", ["messages", "llamafactory", "verl_prompts"])
def test_an_empty_set_does_not_replace_an_existing_file(layout: str, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    out.write_bytes(b"what was there")
    with pytest.raises(UserError, match=r"set\.jsonl: "):
        export_set(Path("set.jsonl"), [], layout, out)
    assert out.read_bytes() == b"what was there"
