"""Copies of trajectories are found by their content, counted by source, and kept once."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from aster.cli import main
from aster.config import Curate
from aster.data.curation import Chain, Dropped, Funnel, choose
from aster.data.curation.chain import UNIQUE
from aster.data.curation.copies import content_of
from aster.data.sets import iterate_set, write_set
from aster.transcript import Transcript, Usage
from aster.types import CallStatus, StopReason
from tests.data.curation.transcripts import calls, step, transcript

ONE = transcript("p", step("plan", ("a = 2", "")), step("next", ("a * 3", "6")), answer="6")


def changed(attempt: Transcript = ONE, /, **fields: Any) -> Transcript:
    """A copy with other fields; ``step`` and ``call`` change the second step and its call."""
    found = Transcript.from_json(attempt.to_json())
    for name, values in (("step", fields.pop("step", {})), ("call", fields.pop("call", {}))):
        for key, value in values.items():
            setattr(found.steps[1] if name == "step" else found.steps[1].calls[0], key, value)
    return dataclasses.replace(found, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "What is it? "},
        {"setup": "x = 1"},
        {"step": {"thinking": "next "}},
        {"step": {"text": "so"}},
        {"call": {"code": "a * 3\n"}},
        {"call": {"output": "6\n"}},
        {"steps": ONE.steps[:2]},
        {"steps": [*ONE.steps[:1], *ONE.steps]},
        {"steps": [step("plan", ("a = 2", ""), ("a * 3", "6")), ONE.steps[2]]},
    ],
)
def test_a_changed_problem_or_turn_is_not_a_copy(fields: dict[str, Any]) -> None:
    assert content_of(changed(**fields)) != content_of(ONE)


def test_other_fields_do_not_matter() -> None:
    about = {
        "problem_id": "other",
        "sample": 3,
        "expected": "6",
        "reward": None,
        "verdict": "?",
        "author": "gpt",
        "source": "set",
        "seed": 9,
        "usage": Usage(1, 2, 3.0),
        "metadata": {"topic": "sums"},
        "stop_reason": StopReason.TOKEN_BUDGET,
        "step": {"tokens": 7},
        "call": {"status": CallStatus.ERROR, "seconds": 1.0},
    }
    assert content_of(changed(**about)) == content_of(ONE)
    assert content_of(changed(prompt="\ud800")) != content_of(ONE)  # any text has a hash
    # Without the prompt, the id identifies the problem.
    assert content_of(changed(prompt="", problem_id="q")) != content_of(changed(prompt=""))


def test_the_verified_copy_is_kept() -> None:
    attempts = [changed(reward=None), ONE, changed(problem_id="q", reward=0.0)]
    for order in ([0, 1, 2], [2, 1, 0]):
        chain = Chain(Curate(verified=True), "a/set.jsonl", sources=2)
        dropped: list[Dropped] = []
        selection = choose((chain.judge(attempts[place]) for place in order), chain, 0, dropped.append)
        assert [attempts[order[place]] for place in selection.kept] == [ONE]
        assert {each.filter for each in dropped} == {"answer verified"}


def test_copies_are_dropped_by_default_only_with_several_sources() -> None:
    attempts = [ONE, changed(sample=1), calls("p", 2)]
    for unique, sources, kept in ((None, 1, 3), (None, 2, 2), (True, 1, 2), (False, 2, 3)):
        chain = Chain(Curate(unique=unique), "a/set.jsonl", sources=sources)
        selection = choose(map(chain.judge, attempts), chain, 0)
        assert len(selection.kept) == kept
        assert (Funnel(UNIQUE, 2) in selection.funnel) == (kept == 2)


def test_which_copy_is_kept_does_not_depend_on_the_order() -> None:
    attempts = [
        changed(problem_id=f"p{number % 4}", author=str(number), call={"output": str(number % 3)}) for number in range(24)
    ]
    chain = Chain(Curate(size=2), "a/set.jsonl", sources=2)
    kept = [
        {stream[place].author for place in choose(map(chain.judge, stream), chain, 5).kept}
        for stream in (attempts, random.Random(1).sample(attempts, 24))
    ]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 2


def test_copies_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine, both, theirs = ([calls(f"{kind}{n}", 3 + n, prompt=kind) for n in range(3)] for kind in ("mine", "both", "theirs"))
    write_set(tmp_path / "a.jsonl", [*mine, *both, mine[0]])
    write_set(tmp_path / "b.jsonl.gz", [*both, *theirs])
    arguments = ["data", "curate", "a.jsonl", "b.jsonl.gz", "density.min=1", "--out", "out.jsonl"]
    result = CliRunner().invoke(main, [*arguments, "--json", "f.json", "--dropped", "d.jsonl", "--html", "f.html"])
    assert result.exit_code == 0, result.output
    expected = [
        "a.jsonl: 1 trajectory is a copy of others in it",
        "b.jsonl.gz: 3 trajectories are copies of those in a.jsonl",
    ]
    assert result.output.splitlines()[-4:-2] == expected
    assert all(line in (tmp_path / "f.html").read_text() for line in expected)
    assert list(iterate_set(tmp_path / "out.jsonl")) == [*mine, *both, *theirs]
    report = json.loads((tmp_path / "f.json").read_text())
    assert [(each["filter"], each["kept"]) for each in report["funnel"]][-1] == (UNIQUE, 9)
    assert report["copies"] == [
        {"in": "a.jsonl", "of": "a.jsonl", "trajectories": 1},
        {"in": "b.jsonl.gz", "of": "a.jsonl", "trajectories": 3},
    ]
    assert [json.loads(line)["filter"] for line in (tmp_path / "d.jsonl").read_text().splitlines()] == [UNIQUE] * 4
    # The same file twice: its copies are dropped, or kept if asked.
    for more, kept, copies in (([], 6, 8), (["unique=false"], 14, 0)):
        result = CliRunner().invoke(
            main, ["data", "curate", "a.jsonl", "a.jsonl", "density.min=1", "--out", "out.jsonl", *more]
        )
        assert result.exit_code == 0, result.output
        assert len(list(iterate_set(tmp_path / "out.jsonl"))) == kept
        assert (f"{copies} trajectories are copies" in result.output) == bool(copies)

    result = CliRunner().invoke(main, ["data", "stats", "a.jsonl", "b.jsonl.gz", "--json", "s.json", "--html", "s.html"])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-2:] == expected
    assert all(line in (tmp_path / "s.html").read_text() for line in expected)
    found = json.loads((tmp_path / "s.json").read_text())
    assert [each["copies_of"] for each in found] == [{"a.jsonl": 1}, {"a.jsonl": 3}]


def test_copies_are_counted_by_source_with_several_processes(tmp_path: Path) -> None:
    many = [calls(f"p{number}", 1 + number % 7, prompt=str(number)) for number in range(300)]
    for name, part in (("a", many[:200]), ("b", many[100:])):
        write_set(tmp_path / f"{name}.jsonl", part)
    arguments = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "density.min=1", "--out", str(tmp_path / "o.jsonl")]
    result = CliRunner().invoke(main, ["data", "curate", *arguments])
    assert result.exit_code == 0, result.output
    assert f"b.jsonl: 100 trajectories are copies of those in {tmp_path}/a.jsonl" in result.output
    assert list(iterate_set(tmp_path / "o.jsonl")) == many
