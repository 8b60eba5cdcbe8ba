"""The stage with a teacher behind a server, in real processes of the command line: on disk at once, killed, gone on with."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from aster.chat import Qwen3Dialect
from aster.core.errors import UserError
from aster.core.recipe_file import load_recipe
from aster.core.run import RunFolder, drop_torn_line, read_json, read_json_lines, read_trajectories
from aster.core.sets import iterate_set
from aster.core.types import StopReason
from aster.curation.sources import Source
from aster.lab.base import BASE_MODEL
from aster.policy.loading import load_tokenizer
from tests.stages.runs import Commands
from tests.teacher.fake_teacher import FakeTeacher

PROBLEMS = 12


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """The command line, in processes that start at once and do not wait long between attempts at a request."""
    return Commands(tmp_path_factory.mktemp("commands"), {"aster.policy.requests.PAUSES": (0.01, 0.02)})


class Bench:
    """A recipe, its problems and its run folder."""

    def __init__(self, folder: Path, teacher: FakeTeacher, parts: dict[int, str] | None = None, **settings: Any) -> None:
        self.run = folder / "run"
        self.file = folder / "recipe.yaml"
        problems = folder / "problems.jsonl"
        asked = [f"What is {n}*7?" + (f" [{parts[n]}]" if parts and n in parts else "") for n in range(2, 2 + PROBLEMS)]
        records = [{"id": f"p{n}", "prompt": text, "answer": str(7 * (n + 2))} for n, text in enumerate(asked)]
        problems.write_text("".join(json.dumps(record) + "\n" for record in records))
        recipe = {
            "name": "taught",
            "cold_start": "program",  # one or two calls
            "model": {"path": "lab", "threads": 1},
            "problems": {"train": str(problems)},
            "sandbox": {"preload": []},
            "synthesize": {
                "teacher": "endpoint",
                "base_url": teacher.address,
                "attempts": 2,
                "concurrency": 4,
                "limits": {"context_tokens": 4096, "turn_tokens": 512},
                **settings,
            },
        }
        self.file.write_text(yaml.safe_dump(recipe))

    @property
    def transcripts(self) -> Path:
        return self.run / "synthesize" / "transcripts.jsonl"

    def command(self, stage: str, *overrides: str) -> tuple[str | Path, ...]:
        return (stage, self.file, *overrides, "--run", self.run)

    def lines(self) -> int:
        return self.transcripts.read_bytes().count(b"\n") if self.transcripts.exists() else 0

    def at(self, count: int) -> Callable[[], bool]:
        return lambda: self.lines() >= count


def test_killed_twice_every_attempt_is_made_exactly_once(commands: Commands, teacher: FakeTeacher, tmp_path: Path) -> None:
    teacher.seconds = 0.02
    bench = Bench(tmp_path, teacher)
    kept: list[bytes] = []
    for count in (5, 14):
        assert commands.killed(bench.at(count), *bench.command("synthesize")).code == -signal.SIGKILL
        drop_torn_line(bench.transcripts)
        content = bench.transcripts.read_bytes()
        assert not kept or content.startswith(kept[-1])  # nothing is written again
        kept.append(content)
    with open(bench.transcripts, "ab") as stream:
        stream.write(b'{"problem_id": "p3", "samp')  # as a kill in the middle of a write leaves it
    last = commands.run(*bench.command("synthesize"))
    assert last.code == 0, last.err
    made = kept[-1].count(b"\n")
    assert f"synthesize: resuming after attempt {made} of 24" in last.err
    assert bench.transcripts.read_bytes().startswith(kept[-1])
    keys = [(t.problem_id, t.sample) for t in iterate_set(bench.transcripts)]
    assert len(keys) == 24
    assert set(keys) == {(f"p{n}", sample) for n in range(PROBLEMS) for sample in range(2)}
    summary = read_json(bench.run / "synthesize" / "summary.json")
    assert (summary["attempts"], summary["correct"], summary["tool_calls"], summary["failures"]) == (24, 24, 2.0, {})
    requests = read_json_lines(bench.run / "synthesize" / "requests.jsonl")
    assert summary["completion_tokens"] == sum(record["completion_tokens"] for record in requests)
    # At most the attempts under way were asked for again.
    assert 24 * 3 <= len(teacher.asked) <= 24 * 3 + 2 * 4 * 3

    # Later stages read it as they read every teacher's.
    files = sorted((bench.run / "synthesize" / "trajectories").glob("chunk_*.jsonl.gz"))
    trajectories = [t for file in files for t in read_trajectories(file)]
    assert [(t.problem_id, t.sample) for t in trajectories] == [(f"p{n}", s) for n in range(PROBLEMS) for s in range(2)]
    dialect = Qwen3Dialect(load_tokenizer(BASE_MODEL))
    first = trajectories[0]
    spans = [first.token_ids[turn.start : turn.end] for turn in first.turns if turn.role == "assistant"]
    assert dialect.parse(spans[0]).thinking == "First the product."
    assert [call.code for call in dialect.parse(spans[1]).calls] == ["print(product)"]
    assert dialect.parse(spans[-1]).content == "I get \\boxed{14}."
    again = commands.run(*bench.command("synthesize"))
    assert "stage synthesize is finished; nothing to do" in again.err
    # Filtered again since, say: the run knows what it asked.
    (tmp_path / "problems.jsonl").write_text('{"id": "other", "prompt": "What is 1*7?", "answer": "7"}\n')
    curated = commands.run(*bench.command("curate"))
    assert curated.code == 0, curated.err
    assert read_json(bench.run / "curate" / "summary.json")["kept"] == 24
    # The recipe names no model: it is the server's.
    for folder in (bench.run, bench.run / "synthesize"):
        assert {transcript.author for transcript in Source(folder)} == {"teacher"}


def test_failed_attempts_are_kept_and_made_again_only_when_asked(
    commands: Commands, teacher: FakeTeacher, tmp_path: Path
) -> None:
    parts = {3: "silent", 5: "withheld", 7: "wrong tool", 9: "wrong"}
    bench = Bench(tmp_path, teacher, parts)
    ended = commands.run(*bench.command("synthesize"))
    assert ended.code == 0, ended.err
    assert "synthesize: 4 of 24 attempts failed: 2 empty_answer, 2 content_filter" in ended.err
    summary = read_json(bench.run / "synthesize" / "summary.json")
    assert summary["failures"] == {"empty_answer": 2, "content_filter": 2}
    assert (summary["attempts"], summary["correct"]) == (24, 18)
    before = {(t.problem_id, t.sample): t for t in iterate_set(bench.transcripts)}
    (bench.run / "synthesize" / "summary.json").unlink()
    asked = len(teacher.asked)
    assert commands.run(*bench.command("synthesize")).code == 0
    assert len(teacher.asked) == asked
    # Asked to repeat them, a finished synthesis goes on, until something is made of it.
    assert commands.run(*bench.command("synthesize", "synthesize.retry_failed=true")).code == 0
    assert len(teacher.asked) == asked + 4
    after = {(t.problem_id, t.sample): t for t in iterate_set(bench.transcripts)}
    assert after.keys() == before.keys()
    assert all(after[key] == t for key, t in before.items() if t.stop_reason is not StopReason.ENGINE_ERROR)


def test_a_server_that_is_gone_for_good_ends_in_one_line(commands: Commands, teacher: FakeTeacher, tmp_path: Path) -> None:
    teacher.seconds = 0.02
    bench = Bench(tmp_path, teacher, concurrency=2)
    process, out, err = commands.start(*bench.command("synthesize"))
    while not bench.at(6)():
        assert process.is_alive(), err.read_text()
        time.sleep(0.001)
    teacher.dead = True
    ended = commands.ended(process, out, err)
    assert ended.code == 2
    errors = [line for line in ended.err.splitlines() if line.startswith("aster: error: ")]
    assert len(errors) == 1
    made = bench.lines()
    assert "no longer answers" in errors[0]
    assert f"{made} of 24 attempts are on disk; the same command goes on from there" in errors[0]
    assert all(t.stop_reason is StopReason.ANSWERED for t in iterate_set(bench.transcripts))  # none is blamed for it
    with pytest.raises(UserError, match=r"so far are the set .*synthesize/transcripts\.jsonl"):
        Source(bench.run)
    teacher.dead = False
    problems = tmp_path / "problems.jsonl"
    asked = problems.read_text()
    problems.write_text(asked.replace("What is", "How much is"))
    changed = commands.run(*bench.command("synthesize"))
    assert changed.code == 2
    assert "problems.jsonl: has changed since this run began" in changed.err
    assert bench.lines() == made
    problems.write_text(asked)
    again = commands.run(*bench.command("synthesize"))
    assert again.code == 0, again.err
    assert bench.lines() == 24


def test_the_spending_limit_over_two_starts(commands: Commands, teacher: FakeTeacher, tmp_path: Path) -> None:
    bench = Bench(tmp_path, teacher, prices={"prompt": 0.0, "completion": 1000.0}, max_cost=1.5)
    first = commands.run(*bench.command("synthesize"))
    assert first.code == 2
    assert "synthesize.max_cost: the limit of 1.5 " in first.err
    made = bench.lines()
    spent = sum(record["cost"] for record in read_json_lines(bench.run / "synthesize" / "requests.jsonl"))
    assert 0 < made < 24
    assert spent <= 1.5
    assert f"{made} of 24 attempts are on disk" in first.err
    second = commands.run(*bench.command("synthesize"))
    assert second.code == 2
    assert bench.lines() <= made + 4
    finished = commands.run(*bench.command("synthesize", "synthesize.finish_at_limit=true"))
    assert finished.code == 0, finished.err
    assert read_json(bench.run / "synthesize" / "summary.json")["attempts"] == bench.lines() < 24


def test_where_and_how_fast_is_no_part_of_the_run_but_the_model_is(teacher: FakeTeacher, tmp_path: Path) -> None:
    bench = Bench(tmp_path, teacher)
    RunFolder.open(bench.run, load_recipe(bench.file), []).close()
    (bench.run / "synthesize").mkdir()
    others = ["base_url=http://elsewhere:1", "concurrency=9", "retry_failed=true", "prices.prompt=1.0"]
    RunFolder.open(bench.run, load_recipe(bench.file, [f"synthesize.{text}" for text in others]), []).close()
    with pytest.raises(Exception, match=r"they differ in synthesize\.model"):
        RunFolder.open(bench.run, load_recipe(bench.file, ["synthesize.model=other"]), [])
