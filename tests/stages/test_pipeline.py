"""The order of stages, a stage alone, faults that spoil a stage, and the cold starts beside the main one."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import time
from pathlib import Path

import pytest

from aster import pipeline
from aster.beside import Beside
from aster.run import RunFolder, read_json
from tests.refusals import printed, refused, require
from tests.sandbox.conftest import levels_here
from tests.stages.runs import Commands, Tiny, reported, sampled, steps


def test_stages_one_by_one_are_the_run(tiny: Tiny, commands: Commands, tmp_path: Path) -> None:
    recipe = tiny.file(tmp_path / "tiny.yaml")
    for stage in ("synthesize", "curate", "sft", "rl", "evaluate"):
        ended = commands.run(stage, recipe, "--run", tmp_path / "run")
        assert ended.code == 0, ended.err
        assert (tmp_path / "run" / stage / "summary.json").exists()
    assert "after RL" in ended.out
    report = commands.run("report", recipe, "--run", tmp_path / "run")
    assert report.code == 0, report.err
    assert f"report: {tmp_path}/run/report.html" in report.out
    assert "nothing to do" in commands.run("run", recipe, "--run", tmp_path / "run").err


def test_a_run_is_the_same_at_every_isolation_level(tiny: Tiny, commands: Commands, tmp_path: Path) -> None:
    """Without user namespaces, too: what a level needs is not used at a weaker one."""
    rl = [{"steps": 1, "limits": tiny.settings["rl"]["stages"][0]["limits"]}]
    changes = {"synthesize.problems": 32, "rl.stages": rl, "evaluate.policies": ["base", "rl"]}
    recipe = tiny.file(tmp_path / "tiny.yaml", changes)
    outcomes = []
    for level in levels_here():
        folder = tmp_path / level
        ended = commands.run("run", recipe, "--run", folder, f"sandbox.isolation={level}")
        assert ended.code == 0, ended.err
        outcomes.append(sampled(folder))
    assert outcomes
    assert all(outcome == outcomes[0] for outcome in outcomes)


def test_the_funnel_and_the_density_are_in_the_summaries(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny.recipe(
        {
            "synthesize.problems": 20,
            "synthesize.attempts": 2,
            "problems.levels": [1, 3],
            "curate.dense_calls": 2,
            "synthesize.limits": {"context_tokens": 1000, "turn_tokens": 200},
        }
    )
    with RunFolder.open(tmp_path / "run", recipe, []) as run:
        pipeline.run_stage("synthesize", recipe, run)
        pipeline.run_stage("curate", recipe, run)
        made, kept = run.summary("synthesize"), run.summary("curate")
        assert made is not None
        assert kept is not None
        assert (made["attempts"], made["correct"]) == (40, 40)
        assert [step["filter"] for step in kept["funnel"]] == [
            "attempts",
            "answer verified",
            "every call succeeded",
            "at least 2 tool calls",
            "16 chosen by seed, balanced over difficulty and topic",
        ]
        assert [step["kept"] for step in kept["funnel"]][-1] == kept["kept"] == 16
        assert 2 <= kept["tool_calls"] <= 3
        # Chosen anew, the same are chosen.
        first = sampled(run.path)["curate/trajectories/kept.jsonl.gz"]
        (run.path / "curate" / "summary.json").unlink()
        pipeline.run_stage("curate", recipe, run)
        assert sampled(run.path)["curate/trajectories/kept.jsonl.gz"] == first


def test_the_policy_can_be_its_own_teacher(tiny: Tiny, coin_problems: Path, tmp_path: Path) -> None:
    changes = {"synthesize.teacher": "policy", "problems.teach": str(coin_problems), "synthesize.attempts": 4}
    recipe = tiny.recipe({**changes, "synthesize.limits": tiny.settings["evaluate"]["limits"], "curate.dense_calls": 0})
    with RunFolder.open(tmp_path / "run", recipe, []) as run:
        pipeline.run_stage("synthesize", recipe, run)
        pipeline.run_stage("curate", recipe, run)
        made, kept = run.summary("synthesize"), run.summary("curate")
    assert made is not None
    assert kept is not None
    assert made["attempts"] == 32
    assert 0 < made["correct"] < 32
    assert 0 < kept["kept"] <= made["correct"]


def test_a_stage_in_which_every_attempt_fails_ends_with_the_reason(tiny: Tiny, tmp_path: Path) -> None:
    """The experts cannot read an output that is cut to one character."""
    recipe = tiny.recipe({"sandbox.output_characters": 1, "synthesize.problems": 3, "problems.levels": [8, 9]})
    with RunFolder.open(tmp_path / "run", recipe, []) as run, refused("synthesize", "3", "engine_error: ValueError"):
        pipeline.run_stage("synthesize", recipe, run)
    assert not (tmp_path / "run" / "synthesize" / "summary.json").exists()


def test_an_early_evaluation_and_report_do_not_count_as_the_runs_own(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny.recipe({"cold_start": "zero", "rl.stages": [{"steps": 1, "limits": tiny.settings["evaluate"]["limits"]}]})
    with RunFolder.open(tmp_path / "run", recipe, []) as run:
        pipeline.run_stage("evaluate", recipe, run)
        assert re.search(r"^evaluate: (?!\d+/).*\brl\b", capsys.readouterr().err, re.MULTILINE)
        assert list(read_json(run.path / "summary.json")) == ["base"]
        pipeline.run_stage("report", recipe, run)
        early = (run.path / "report.html").read_bytes()
        base = (run.path / "evaluate" / "base" / "outcomes.jsonl").stat().st_mtime_ns
        pipeline.run_all(recipe, run)
        assert list(read_json(run.path / "summary.json")) == ["base", "rl"]
        assert (run.path / "report.html").read_bytes() != early
        assert (run.path / "evaluate" / "base" / "outcomes.jsonl").stat().st_mtime_ns == base
        # All policies are asked the same problems with the same random numbers.
        made = sampled(run.path)
        asked = [[entry[:3] for entry in made[f"evaluate/{name}"]] for name in ("base", "rl")]
        assert asked[0] == asked[1]
        capsys.readouterr()
        pipeline.run_all(recipe, run)
        # One line about the folder, and none about a stage.
        assert re.fullmatch(rf"{re.escape(str(run.path))}: .*\n", capsys.readouterr().err)


two_cores = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="a cold start beside the main one needs a core of its own"
)


@two_cores
def test_a_cold_start_beside_dies_with_the_run_and_resumes_with_it(tiny: Tiny, commands: Commands, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ("run", tiny.file(tmp_path / "tiny.yaml", {"beside": ["zero", "aster"]}), "--run", run)
    zero = run / "beside" / "zero"
    killed = commands.killed(lambda: steps(zero, "rl") >= 1, *command)
    assert killed.code == -signal.SIGKILL
    assert re.search(rf"^beside: .*\bzero\b.* {re.escape(str(zero))}\b", killed.err, re.MULTILINE)
    assert not (zero / "summary.json").exists()
    with open(zero / ".lock", "a") as lock:
        for _ in range(500):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
        else:
            pytest.fail("the cold start beside the killed run lives on")
    again = commands.run(*command)
    assert again.code == 0, again.err
    assert reported((run / "beside" / "zero.log").read_text(), zero, "rl")
    assert again.out.count("cold start: ") == 2
    assert list(read_json(zero / "summary.json")) == ["base", "rl"]
    assert RunFolder.load(zero).recipe["beside"] == []
    assert "zero" in (run / "report.html").read_text()


@two_cores
def test_a_cold_start_beside_that_fails_is_said(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny.recipe({"beside": ["zero"]})
    (tmp_path / "run" / "beside" / "zero").mkdir(parents=True)
    with RunFolder.open(tmp_path / "run", recipe, []) as run, open(run.path / "beside" / "zero" / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with Beside(recipe, run) as beside:
            beside.wait()
    log = tmp_path / "run" / "beside" / "zero.log"
    assert reported(capsys.readouterr().err, "beside", rf"zero\b.*\b2\b.* {re.escape(str(log))}")
    require(printed(log.read_text()), str(tmp_path / "run" / "beside" / "zero"), "process", "--run")


def test_without_a_free_core_nothing_runs_beside(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny.recipe({"beside": ["zero"]})
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        with RunFolder.open(tmp_path / "run", recipe, []) as run, Beside(recipe, run) as beside:
            assert beside.running == []
    finally:
        os.sched_setaffinity(0, cores)
    assert reported(capsys.readouterr().err, "beside", "cold_start=zero")
