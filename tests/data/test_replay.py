"""Calls that run again: what our sandbox made comes back, and what does not is found, named and told."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from aster.chat import Qwen3Dialect
from aster.cli import main
from aster.data.rendering import transcribe
from aster.data.replay import Replayed, alike, describe, replay
from aster.data.sets import write_set
from aster.environments.lab import generate
from aster.lab.tokenizer import build_tokenizer
from aster.rollout import Decoding, Job, RolloutContext, rollout_batch
from aster.teacher import ScriptedTeacher
from aster.teacher.lab_experts import EXPERTS
from aster.transcript import Step, Transcript
from aster.types import Budget, CallStatus, Problem, ToolCall
from aster_sandbox import make_sandbox
from tests.shop_fixture import Shop

BUDGET = Budget(context_tokens=4096, turn_tokens=512, tool_calls=30, turns=40, wall_seconds=60)


def transcript(*calls: tuple[str, str, CallStatus], setup: str = "", seed: int = 3, number: int = 0) -> Transcript:
    made = [ToolCall(code, status, output, 0.0) for code, output, status in calls]
    return Transcript(f"p{number}", 0, "?", steps=[Step("", "", made)], seed=seed, setup=setup)


def replayed(shop: Shop, *transcripts: Transcript) -> Replayed:
    return shop.run(replay(list(transcripts), shop.sandbox, 4))


@pytest.mark.parametrize("family", ["chain", "hunt"])
def test_a_set_of_the_lab_comes_back_whole(family: str, shop: Shop) -> None:
    """Hunt's oracle is hidden in the session's setup: a replay without it would find nothing."""
    dialect = Qwen3Dialect(build_tokenizer())
    problems = generate({family: 1.0}, (4, 6), "train", 12, 1)
    # The first expert is the dense one, whatever it is called.
    expert = next(iter(EXPERTS.values()))

    async def main() -> list[Transcript]:
        context = RolloutContext(
            lambda job: ScriptedTeacher(expert, job.problem, job.seed, dialect), dialect, shop.environment, 8
        )
        jobs = [Job(problem, 0, 7 + number) for number, problem in enumerate(problems)]
        made = await rollout_batch(jobs, context, BUDGET, Decoding())
        return [transcribe(t, p, dialect) for t, p in zip(made, problems, strict=True)]

    made = shop.run(main())
    report = replayed(shop, *made)
    assert report.calls == sum(t.tool_calls for t in made) >= 12
    assert (report.same, report.different, report.failures) == (report.calls, 0, [])
    assert report.clean


def test_the_seed_brings_random_numbers_back(shop: Shop) -> None:
    code = "import random\nrandom.random()"

    async def once(seed: int) -> ToolCall:
        session = await shop.sandbox.open(seed, "")
        try:
            return ToolCall.of_cell(await session.run(code))
        finally:
            await session.close()

    call = shop.run(once(5))
    same = transcript((code, call.output, call.status), seed=5)
    assert replayed(shop, same).same == 1
    assert replayed(shop, transcript((code, call.output, call.status), seed=6)).different == 1


def test_state_is_kept_within_a_trajectory_and_not_between(shop: Shop) -> None:
    ok = CallStatus.OK
    lines = [transcript(("x = %d" % n, "", ok), ("x + 1", str(n + 1), ok), number=n) for n in range(20)]  # noqa: UP031
    silent = shop.run(_output(shop, "x = 1"))
    for line in lines:
        line.steps[0].calls[0].output = silent
    random.Random(0).shuffle(lines)
    assert replayed(shop, *lines).same == 40


async def _output(shop: Shop, code: str) -> str:
    session = await shop.sandbox.open(0, "")
    try:
        return (await session.run(code)).output
    finally:
        await session.close()


def test_differences_have_their_kind(shop: Shop) -> None:
    ok, error, malformed = CallStatus.OK, CallStatus.ERROR, CallStatus.MALFORMED
    report = replayed(
        shop,
        transcript(("1+1", "2", ok), ("1+1", "3", ok), ("1/0", "inf", ok), ("nonsense", "", malformed), number=1),
        transcript(("object()", "<object object at 0x7f00deadbeef>", ok), ("print('took 0.5 s')", "took 1.25 s", ok), number=2),
        transcript(("2*2", "4\n", ok), ("print(1)", "NameError", error), number=3),
    )
    assert (report.trajectories, report.calls, report.skipped) == (3, 7, 1)
    assert (report.same, report.alike) == (1, 3)
    assert report.kinds == {"output": 1, "ok -> error": 1, "error -> ok": 1}
    assert report.differing_trajectories == 2  # p1 and p3, whatever ran meanwhile
    assert not report.clean
    text = describe(report)
    assert "7 calls of 3 trajectories ran again: 1 outputs the same, 3 but for addresses and times, 3 different" in text
    assert "p1, sample 0, call 2 (ok -> error)" in text
    assert "1 calls were malformed" in text


def test_a_session_that_cannot_be_had_is_told(shop: Shop) -> None:
    report = replayed(
        shop, transcript(("1", "1", CallStatus.OK), setup="raise ValueError('no')"), transcript(("1", "1", CallStatus.OK))
    )
    assert (report.same, len(report.failures), report.clean) == (1, 1, False)
    assert "not replayed: p0/0: " in describe(report)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("at 0x7f1", "at 0xabc", True),
        ("0.123 seconds", "4.5 seconds", True),
        ("1.2e-05s", "0.25s", True),
        ("x = 3", "x = 4", False),
        ("3 sides", "4 sides", False),
    ],
)
def test_what_is_alike(first: str, second: str, same: bool) -> None:
    assert (alike(first) == alike(second)) is same


def test_the_command(tmp_path: Path) -> None:
    ok = CallStatus.OK
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl.gz"
    write_set(good, [transcript(("1+1", "2", ok))])
    write_set(bad, [transcript(("1+1", "2", ok)), transcript(("1+1", "3", ok))])
    settings = ["sandbox.preload=[]"]
    assert CliRunner().invoke(main, ["replay", str(good), *settings]).exit_code == 0
    found = CliRunner().invoke(main, ["replay", str(bad), *settings, "--out", str(tmp_path / "report.json")])
    assert found.exit_code == 1
    assert "1 outputs the same, 0 but for addresses and times, 1 different" in found.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["calls"], report["different"], report["kinds"]) == (2, 1, {"output": 1})
    assert (report["examples"][0]["recorded"], report["examples"][0]["now"]) == ("3", "2")
    assert CliRunner().invoke(main, ["replay", str(tmp_path / "none.jsonl")]).exit_code == 2


def test_fields_change_the_run_s_own_sandbox_and_no_other_field_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aster.config import Sandbox
    from aster.config.recipe import Recipe
    from aster.lab.tokenizer import build_tokenizer
    from aster.run import RunFolder, write_trajectories
    from aster.types import Trajectory

    own = Sandbox(preload=[], output_characters=77, cell_seconds=9.0)
    with RunFolder.open(tmp_path / "run", Recipe(sandbox=own), []) as run:
        write_trajectories(run.trajectory_file("curate", "kept"), [Trajectory("p", 0, 1)])
        build_tokenizer().save_pretrained(tmp_path / "run" / "tokenizer")
    used = []

    def make(settings: Sandbox) -> Any:
        used.append(settings)
        return make_sandbox(settings)

    monkeypatch.setattr("aster_sandbox.make_sandbox", make)
    for fields in ([], ["sandbox.cell_seconds=3"]):
        result = CliRunner().invoke(main, ["replay", str(tmp_path / "run"), *fields])
        assert result.exit_code == 0, result.output
    assert used == [own, own.model_copy(update={"cell_seconds": 3.0})]


def test_of_an_empty_set_nothing_can_be_said(tmp_path: Path) -> None:
    write_set(tmp_path / "empty.jsonl", [])
    result = CliRunner().invoke(main, ["replay", str(tmp_path / "empty.jsonl")])
    assert result.exit_code == 2
    assert "empty.jsonl" in result.output


def test_the_problem_of_a_setup_is_remembered(tmp_path: Path) -> None:
    from aster.config.recipe import Recipe
    from aster.run import RunFolder

    with RunFolder.open(tmp_path / "run", Recipe(), []) as run:
        run.remember_problems([Problem("p", "?", "1", "s", "hidden = 1")])
        assert run.problems()["p"]["setup"] == "hidden = 1"
