"""The stage with a teacher behind a server, in real processes of the command line: what is on disk, killed and resumed runs."""

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
from aster.config.engine import BASE_MODEL
from aster.config.file import load_recipe
from aster.data.curation.sources import Source
from aster.data.sets import iterate_set
from aster.engines.local.loading import load_tokenizer
from aster.run import RunFolder, drop_torn_line, read_json, read_json_lines, read_trajectories
from aster.seeds import derive
from aster.types import StopReason
from tests.refusals import printed, refused, require
from tests.stages.runs import Commands
from tests.teacher.fake_teacher import WRITTEN, FakeTeacher

PROBLEMS = 12


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """The command line, in processes that start at once and do not wait long between attempts at a request."""
    return Commands(tmp_path_factory.mktemp("commands"), {"aster.http.PAUSES": (0.01, 0.02)})


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
    made = bench.lines()
    error = printed(ended.err)
    require(error, "synthesize.base_url")
    assert f"{made} of 24" in str(error)
    assert all(t.stop_reason is StopReason.ANSWERED for t in iterate_set(bench.transcripts))  # none is blamed for it
    with refused(str(bench.run)) as caught:
        Source(bench.run)
    assert str(bench.transcripts) in str(caught.value)
    teacher.dead = False
    problems = tmp_path / "problems.jsonl"
    asked = problems.read_text()
    problems.write_text(asked.replace("What is", "How much is"))
    changed = commands.run(*bench.command("synthesize"))
    assert changed.code == 2
    require(printed(changed.err), str(problems))
    assert bench.lines() == made
    problems.write_text(asked)
    again = commands.run(*bench.command("synthesize"))
    assert again.code == 0, again.err
    assert bench.lines() == 24


def test_the_spending_limit_over_two_starts(commands: Commands, teacher: FakeTeacher, tmp_path: Path) -> None:
    bench = Bench(tmp_path, teacher, prices={"prompt": 0.0, "completion": 1000.0}, max_cost=1.5)
    first = commands.run(*bench.command("synthesize"))
    assert first.code == 2
    require(printed(first.err), "synthesize.max_cost")
    made = bench.lines()
    spent = sum(record["cost"] for record in read_json_lines(bench.run / "synthesize" / "requests.jsonl"))
    assert 0 < made < 24
    assert spent <= 1.5
    assert f"{made} of 24" in str(printed(first.err))
    second = commands.run(*bench.command("synthesize"))
    assert second.code == 2
    assert bench.lines() <= made + 4
    finished = commands.run(*bench.command("synthesize", "synthesize.finish_at_limit=true"))
    assert finished.code == 0, finished.err
    assert read_json(bench.run / "synthesize" / "summary.json")["attempts"] == bench.lines() < 24


def kept(bench: Bench) -> dict[tuple[str, int], str]:
    """The lines on disk, by attempt; each is there once."""
    found = {(t.problem_id, t.sample): json.dumps(t.to_json()) for t in iterate_set(bench.transcripts)}
    assert len(found) == bench.lines()
    return found


def rendered(bench: Bench) -> list[tuple[str, int]]:
    """The attempts that later stages read."""
    files = sorted((bench.run / "synthesize" / "trajectories").glob("chunk_*.jsonl.gz"))
    return [(t.problem_id, t.sample) for file in files for t in read_trajectories(file)]


@pytest.mark.parametrize("finishing", [False, True])
def test_a_run_cut_by_its_limit_goes_on_with_a_higher_one(
    finishing: bool, commands: Commands, teacher: FakeTeacher, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, teacher, prices={"prompt": 0.0, "completion": 1000.0}, finish_at_limit=finishing)
    before: dict[tuple[str, int], str] = {}
    for limit in (1.2, 2.0):
        cut = commands.run(*bench.command("synthesize", f"synthesize.max_cost={limit}"))
        assert cut.code == (0 if finishing else 2), cut.err
        made = kept(bench)
        assert before.items() < made.items()
        assert len(made) < 24
        before = made
    asked = len(teacher.asked)
    # Neither the same limit nor a lower one is a reason to go on with a synthesis that has ended.
    if finishing:
        assert rendered(bench) == sorted(before, key=lambda key: (int(key[0][1:]), key[1]))
        for limit in (2.0, 1.5):
            again = commands.run(*bench.command("synthesize", f"synthesize.max_cost={limit}"))
            assert "stage synthesize is finished; nothing to do" in again.err
        assert len(teacher.asked) == asked
    ended = commands.run(*bench.command("synthesize", "synthesize.max_cost=100"))
    assert ended.code == 0, ended.err
    assert f"synthesize: resuming after attempt {len(before)} of 24" in ended.err
    everything = [(f"p{n}", sample) for n in range(PROBLEMS) for sample in range(2)]
    assert kept(bench).keys() == set(everything)
    assert before.items() < kept(bench).items()
    assert rendered(bench) == everything
    # All that was ever paid for, of attempts too that the limit cut in the middle.
    summary = read_json(bench.run / "synthesize" / "summary.json")
    paid = read_json_lines(bench.run / "synthesize" / "requests.jsonl")
    assert len(paid) == len(teacher.asked)
    assert summary["cost"] == pytest.approx(sum(record["completion_tokens"] for record in paid) / 1000)
    assert summary["attempts"] == 24
    whole = commands.run(*bench.command("synthesize", "synthesize.max_cost=200"))
    assert "stage synthesize is finished; nothing to do" in whole.err


def test_more_attempts_are_added_to_those_that_are_there(commands: Commands, teacher: FakeTeacher, tmp_path: Path) -> None:
    bench = Bench(tmp_path, teacher, attempts=1)
    assert commands.run(*bench.command("synthesize")).code == 0
    first = kept(bench)
    more = commands.run(*bench.command("synthesize", "synthesize.attempts=3"))
    assert more.code == 0, more.err
    assert "synthesize: resuming after attempt 12 of 36" in more.err
    assert first.items() < kept(bench).items()
    everything = [(f"p{n}", sample) for n in range(PROBLEMS) for sample in range(3)]
    assert rendered(bench) == everything
    # Each is the one that it would have been, had so many been asked for at once.
    seeds = {(t.problem_id, t.sample): t.seed for t in iterate_set(bench.transcripts)}
    assert seeds == {(name, sample): derive(1, "synthesize", name, sample) for name, sample in everything}
    assert commands.run(*bench.command("curate", "synthesize.attempts=3")).code == 0
    late = commands.run(*bench.command("synthesize", "synthesize.attempts=4"))
    assert "synthesize.attempts: " in late.err
    assert "stage synthesize is finished; nothing to do" in late.err
    # Fewer than there are takes none away.
    assert "stage synthesize is finished; nothing to do" in commands.run(*bench.command("synthesize")).err


def test_more_problems_are_added_to_those_that_are_there(commands: Commands, teacher: FakeTeacher, tmp_path: Path) -> None:
    bench = Bench(tmp_path, teacher, attempts=1, problems=5)
    assert commands.run(*bench.command("synthesize")).code == 0
    first = kept(bench)
    assert len(first) == 5
    fewer = commands.run(*bench.command("synthesize", "synthesize.problems=4"))
    assert fewer.code == 2
    require(printed(fewer.err), "synthesize.problems")
    more = commands.run(*bench.command("synthesize", "synthesize.problems=9"))
    assert more.code == 0, more.err
    assert "synthesize: resuming after attempt 5 of 9" in more.err
    second = kept(bench)
    assert first.items() < second.items()
    assert rendered(bench) == sorted(second, key=lambda key: int(key[0][1:]))
    assert len(teacher.asked) == 9 * 3
    # The recipe as it was takes none of them away, and mixes nothing with them.
    assert "stage synthesize is finished; nothing to do" in commands.run(*bench.command("synthesize")).err
    (bench.run / "synthesize" / "summary.json").unlink()
    fewer = commands.run(*bench.command("synthesize"))
    assert fewer.code == 2
    require(printed(fewer.err), "synthesize.problems")
    everything = commands.run(*bench.command("synthesize", "synthesize.problems=400"))
    assert everything.code == 0, everything.err
    assert second.items() < kept(bench).items()
    assert rendered(bench) == [(f"p{n}", 0) for n in range(PROBLEMS)]
    assert commands.run(*bench.command("curate", "synthesize.problems=400")).code == 0
    late = commands.run(*bench.command("synthesize", "synthesize.problems=500"))
    assert "synthesize.problems: " in late.err


def test_another_model_at_the_address_is_refused(commands: Commands, teacher: FakeTeacher, tmp_path: Path) -> None:
    bench = Bench(tmp_path, teacher, attempts=1)
    assert commands.run(*bench.command("synthesize")).code == 0
    teacher.models = {"newcomer": None}
    other = commands.run(*bench.command("synthesize", "synthesize.attempts=2"))
    assert other.code == 2
    require(printed(other.err), "synthesize.base_url")
    assert "newcomer" in other.err
    assert bench.lines() == PROBLEMS


def written(form: str, thinking: str, code: str) -> str:
    """A turn as the teacher wrote it up to where the server stopped it, closed."""
    opening, closing = WRITTEN[form]
    return f"{thinking}\n{opening}\n{code}\n{closing}"


@pytest.mark.parametrize("form", ["code", "fenced", "harmony"])
def test_calls_in_text_from_the_server_to_the_student_s_tokens(
    form: str, commands: Commands, teacher: FakeTeacher, tmp_path: Path
) -> None:
    teacher.writes = form
    request = {"skip_special_tokens": False} if form == "harmony" else {}
    bench = Bench(tmp_path, teacher, attempts=1, calls=form, request=request)
    ended = commands.run(*bench.command("synthesize"))
    assert ended.code == 0, ended.err
    summary = read_json(bench.run / "synthesize" / "summary.json")
    # Right only where the code was read out of the text, ran in one session, and its output came back in the form.
    assert (summary["attempts"], summary["correct"], summary["tool_calls"], summary["failures"]) == (12, 12, 2.0, {})
    assert len(teacher.asked) == 12 * 3
    asked = max((body for body in teacher.asked), key=lambda body: len(body["messages"]))
    if form == "harmony":
        assert "tools" in asked
        assert [m["role"] for m in asked["messages"]] == ["user", "assistant", "tool", "assistant", "tool"]
        assert asked["messages"][1]["reasoning_content"] == "First the product."
        assert not any("<|" in json.dumps(m) for m in asked["messages"])  # the server's template writes the marks
    else:
        assert "tools" not in asked
        assert [m["role"] for m in asked["messages"]] == ["system", "user", "assistant", "user", "assistant", "user"]
        assert "Put the final answer in" in asked["messages"][0]["content"]
        assert asked["messages"][4]["content"].rstrip() == written(form, "Now I look at it.", "print(product)")
    curated = commands.run(*bench.command("curate"))
    assert curated.code == 0, curated.err
    dialect = Qwen3Dialect(load_tokenizer(BASE_MODEL))
    kept_file = bench.run / "curate" / "trajectories" / "kept.jsonl.gz"
    for number, trajectory in enumerate(read_trajectories(kept_file)):
        turns = [
            dialect.parse(trajectory.token_ids[turn.start : turn.end]) for turn in trajectory.turns if turn.role == "assistant"
        ]
        assert [(turn.thinking, [call.code for call in turn.calls], turn.content) for turn in turns] == [
            ("First the product.", [f"product = {number + 2} * 7"], ""),
            ("Now I look at it.", ["print(product)"], ""),
            ("That is it.", [], f"I get \\boxed{{{7 * (number + 2)}}}."),
        ]


@pytest.mark.parametrize("calls", ["harmony", "tools"])
def test_harmony_without_its_marks_is_not_taken_for_answers(
    calls: str, commands: Commands, teacher: FakeTeacher, tmp_path: Path
) -> None:
    teacher.writes = "harmony"  # on a server that was not asked for special tokens
    bench = Bench(tmp_path, teacher, attempts=1, calls=calls)
    ended = commands.run(*bench.command("synthesize"))
    assert ended.code == 2
    error = printed(ended.err)
    require(error, "synthesize")
    assert "12 stripped_marks" in str(error)
    assert "skip_special_tokens: false" in str(error)  # what would help
    assert bench.lines() == 12


def test_where_and_how_fast_is_no_part_of_the_run_but_the_model_is(teacher: FakeTeacher, tmp_path: Path) -> None:
    bench = Bench(tmp_path, teacher)
    RunFolder.open(bench.run, load_recipe(bench.file), []).close()
    (bench.run / "synthesize").mkdir()
    others = [
        "base_url=http://elsewhere:1",
        "concurrency=9",
        "retry_failed=true",
        "prices.prompt=1.0",
        "attempts=5",
        "problems=500",
    ]
    RunFolder.open(bench.run, load_recipe(bench.file, [f"synthesize.{text}" for text in others]), []).close()
    with refused(str(bench.run)) as caught:
        RunFolder.open(bench.run, load_recipe(bench.file, ["synthesize.model=other"]), [])
    assert "synthesize.model" in str(caught.value)
