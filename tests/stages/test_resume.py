"""A run that is killed and started again ends as the one that was not."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from aster.data.curation.sources import Source
from aster.evaluation.folder import EvaluationFolder
from aster.run import RunFolder, read_json, read_trajectories, write_json, write_trajectories
from aster.telemetry.metrics import METRICS
from aster.types import StopReason, Trajectory
from tests.refusals import printed, require
from tests.stages.runs import Commands, Tiny, lines, reported, sampled, snapshot, steps, weights


@pytest.fixture(scope="module")
def undisturbed(tiny: Tiny, commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = commands.run("run", tiny.file(folder / "tiny.yaml"), "--run", folder / "run")
    assert ended.code == 0, ended.err
    return folder / "run"


def test_a_run_killed_in_every_stage_ends_as_the_undisturbed_one(
    tiny: Tiny, commands: Commands, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ("run", tiny.file(tmp_path / "tiny.yaml"), "--run", run)

    def unfinished(stage: str) -> bool:
        return not (run / stage / "summary.json").exists()

    part = run / "synthesize" / "trajectories" / "part_00001.jsonl.gz"
    assert commands.killed(part.exists, *command).code == -signal.SIGKILL
    assert unfinished("synthesize")
    first = commands.killed(lambda: steps(run, "sft") >= 2, *command)
    assert reported(first.err, run, "synthesize")
    assert reported(first.err, "synthesize", r"(16|32|48|64|80) \w+ 96")
    assert unfinished("sft")
    done = steps(run, "sft")
    second = commands.killed(lambda: steps(run, "rl") >= 2, *command)
    assert reported(second.err, run, "sft")
    # At most the step under way is lost: the last logged one, where the kill came before its checkpoint.
    assert reported(second.err, "sft", f"step ({done}|{done - 1})")
    assert unfinished("rl")
    done = steps(run, "rl")
    third = commands.killed((run / "evaluate" / "base" / "summary.json").exists, *command)
    assert reported(third.err, run, "rl")
    assert reported(third.err, "rl", f"step ({done}|{done - 1})")
    assert unfinished("evaluate")
    fourth = commands.run(*command)
    assert fourth.code == 0, fourth.err
    assert reported(fourth.err, run, "evaluate")
    assert json.loads((run / "evaluate" / "base" / "evaluation.json").read_text())["notes"]["label"] == "base"

    assert sampled(run) == sampled(undisturbed)
    for ours, theirs in zip(lines(run, "sft"), lines(undisturbed, "sft"), strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    assert lines(run, "rl") == lines(undisturbed, "rl")
    assert weights(run, "rl") == weights(undisturbed, "rl")
    assert read_json(run / "summary.json") == read_json(undisturbed / "summary.json")
    assert (run / "report.html").exists()
    assert not list(run.rglob("*.partial"))
    assert len(read_json(run / "run.json")["commands"]) == 5


def test_the_undisturbed_run_did_learn(undisturbed: Path) -> None:
    """Or the comparison above would compare nothing."""
    rl = lines(undisturbed, "rl")
    assert [line["step"] for line in rl] == [1, 2, 3, 4, 5]
    assert [line["stage_index"] for line in rl] == [0, 0, 0, 1, 1]
    assert sum(line["optimizer_steps"] for line in rl) >= 3
    assert 0 < rl[0]["reward"] < 1
    assert any(line["tool_calls"] > 0 for line in rl)
    assert weights(undisturbed, "rl") != weights(undisturbed, "sft")


def test_summary_has_the_policies_side_by_side(undisturbed: Path) -> None:
    summary = read_json(undisturbed / "summary.json")
    assert list(summary) == ["base", "sft", "rl"]
    for result in summary.values():
        assert set(result) == {"accuracy", "low", "high", "k", "problems", "tool_calls"}
        assert 0 <= result["low"] <= result["accuracy"] <= result["high"] <= 1
        assert (result["k"], result["problems"]) == (2, 3)


def test_a_finished_run_is_left_as_it_is(tiny: Tiny, commands: Commands, undisturbed: Path, tmp_path: Path) -> None:
    before = snapshot(undisturbed)
    recipe = tiny.file(tmp_path / "tiny.yaml")
    again = commands.run("run", recipe, "--run", undisturbed)
    assert again.code == 0
    assert re.fullmatch(rf"{re.escape(str(undisturbed))}: .*\n", again.err)
    assert "after RL" in again.out
    for stage in ("synthesize", "curate", "sft", "rl", "evaluate"):
        again = commands.run(stage, recipe, "--run", undisturbed)
        assert again.code == 0
        assert re.fullmatch(rf"{re.escape(str(undisturbed))}: .*\b{stage}\b.*\n", again.err)
    assert snapshot(undisturbed) == before


@pytest.mark.parametrize("damage", ["line without checkpoint", "checkpoint without line", "torn line", "unfinished files"])
def test_rl_goes_on_from_what_is_whole(damage: str, tiny: Tiny, commands: Commands, undisturbed: Path, tmp_path: Path) -> None:
    """Killed between a step's metrics line and its checkpoint, or in the middle of a write."""
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    for stage in ("rl", "evaluate", "evaluate/base", "evaluate/sft", "evaluate/rl", "report"):
        (run / stage / "summary.json").unlink()
    # The base and SFT policies' evaluations are not what this is about.
    for name in ("base", "sft"):
        shutil.copy(undisturbed / "evaluate" / name / "summary.json", run / "evaluate" / name / "summary.json")
    metrics = run / "metrics.jsonl"
    kept = metrics.read_text().splitlines(keepends=True)
    done = 4
    if damage == "line without checkpoint":
        shutil.rmtree(run / "rl" / "checkpoints" / "step_000005")
    elif damage == "checkpoint without line":
        metrics.write_text("".join(kept[:-1]))
    elif damage == "torn line":
        metrics.write_text("".join(kept[:-1]) + kept[-1][:50])
    else:
        metrics.write_text("".join(kept[:-1]))
        whole = run / "rl" / "checkpoints" / "step_000005"
        (whole / "model.safetensors").unlink()
        whole.rename(whole.with_name(".step_000005.partial"))
        (run / "rl" / "trajectories" / "step_000005.jsonl.gz").unlink()
        (run / "rl" / "trajectories" / ".step_000005.jsonl.gz.partial").write_bytes(b"\x1f\x8b half")
    ended = commands.run("rl", tiny.file(tmp_path / "tiny.yaml"), "--run", run)
    assert ended.code == 0, ended.err
    assert reported(ended.err, "rl", f"step {done}")
    assert lines(run, "rl") == lines(undisturbed, "rl")
    assert weights(run, "rl") == weights(undisturbed, "rl")
    rl = {name: value for name, value in sampled(undisturbed).items() if name.startswith("rl/")}
    assert {name: value for name, value in sampled(run).items() if name.startswith("rl/")} == rl


def test_without_a_whole_checkpoint_a_stage_begins_anew(
    tiny: Tiny, commands: Commands, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    (run / "sft" / "summary.json").unlink()
    metrics = run / "metrics.jsonl"
    metrics.write_text("".join(line for line in metrics.read_text().splitlines(keepends=True) if json.loads(line)["step"] != 1))
    ended = commands.run("sft", tiny.file(tmp_path / "tiny.yaml"), "--run", run)
    assert ended.code == 0, ended.err
    assert not reported(ended.err, "sft", r"step \d+")
    assert [line["loss"] for line in lines(run, "sft")] == pytest.approx(
        [line["loss"] for line in lines(undisturbed, "sft")], abs=1e-5
    )


def test_without_the_fixed_schedule_prompts_and_seeds_are_the_same(tiny: Tiny, commands: Commands, tmp_path: Path) -> None:
    """Cold start zero: there is no stage before RL, and no SFT policy to evaluate."""
    changes = {"rollout.deterministic": False, "cold_start": "zero"}
    command = ("run", tiny.file(tmp_path / "tiny.yaml", changes), "--run")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert commands.run(*command, whole).code == 0
    assert commands.killed(lambda: steps(killed, "rl") >= 2, *command, killed).code == -signal.SIGKILL
    done = steps(killed, "rl")
    ended = commands.run(*command, killed)
    assert ended.code == 0, ended.err
    assert reported(ended.err, killed, "rl")
    assert reported(ended.err, "rl", f"step ({done}|{done - 1})")

    def asked(folder: Path) -> dict[str, list[tuple[str, int, int]]]:
        files = {name: made for name, made in sampled(folder).items() if name.startswith("rl/")}
        return {name: [(problem, sample, seed) for problem, sample, seed, *_ in made] for name, made in files.items()}

    # The second stage leaves out solved problems, and which are solved is the policy's affair.
    first = (
        "rl/trajectories/step_000001.jsonl.gz",
        "rl/trajectories/step_000002.jsonl.gz",
        "rl/trajectories/step_000003.jsonl.gz",
    )
    assert {name: asked(killed)[name] for name in first} == {name: asked(whole)[name] for name in first}
    assert asked(killed).keys() == asked(whole).keys()
    for folder in (whole, killed):
        assert list(read_json(folder / "summary.json")) == ["base", "rl"]
        assert RunFolder.load(folder).summary("sft") is None


def test_an_evaluation_goes_on_after_its_last_part(tiny: Tiny, commands: Commands, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    shutil.rmtree(run / "evaluate")
    (run / "summary.json").unlink()
    command = ("evaluate", tiny.file(tmp_path / "tiny.yaml"), "--run", run)
    part = run / "evaluate" / "base" / "attempts" / "part_00001.jsonl.gz"
    small = {"aster.rollout.attempts.PART": 2}
    assert commands.killed(part.exists, *command, constants=small).code == -signal.SIGKILL
    assert commands.run(*command).code == 0
    assert sampled(run)["evaluate/base"] == sampled(undisturbed)["evaluate/base"]
    assert read_json(run / "summary.json") == read_json(undisturbed / "summary.json")


def outcomes(folder: Path) -> list[dict[str, Any]]:
    """The outcomes of an evaluation, without what a clock decides."""
    return [{**each.to_json(), "seconds": 0.0} for each in EvaluationFolder.load(folder).outcomes()]


def test_a_run_that_was_moved_repeats_the_faulty_attempts_of_its_evaluation(
    tiny: Tiny, commands: Commands, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "moved"
    shutil.copytree(undisturbed, run)
    folder = EvaluationFolder.load(run / "evaluate" / "rl")
    good = next(iter(folder.attempts()))
    assert isinstance(good, Trajectory)
    folder.add([dataclasses.replace(good, stop_reason=StopReason.ENGINE_ERROR, error="gone", answer=None, reward=0.0)])
    write_json(folder.path / "summary.json", {**read_json(folder.path / "summary.json"), "faults": 1})
    command = ("evaluate", tiny.file(tmp_path / "tiny.yaml"), "--run", run)
    before = snapshot(run)
    assert commands.run(*command).code == 0
    assert snapshot(run) == before
    ended = commands.run(*command, "--retry-faults")
    assert ended.code == 0, ended.err
    assert reported(ended.err, "evaluate rl", r"5 \w+ 6")
    assert outcomes(run / "evaluate" / "rl") == outcomes(undisturbed / "evaluate" / "rl")
    assert read_json(run / "evaluate" / "rl" / "summary.json")["faults"] == 0
    assert read_json(run / "summary.json") == read_json(undisturbed / "summary.json")
    # The attempt is in two parts; a set has it once.
    assert len(list(Source(run / "evaluate" / "rl"))) == 6
    compared = commands.run("compare", run / "evaluate" / "rl", undisturbed / "evaluate" / "rl")
    assert compared.code == 0, compared.err
    for path in (run, undisturbed):  # both are labelled rl
        assert str(path / "evaluate" / "rl") in compared.out


def test_a_set_of_rl_has_the_attempts_of_every_step_at_a_problem(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    files = sorted((run / "rl" / "trajectories").iterdir())
    shutil.copy(files[0], files[1])  # the same problems were drawn again
    assert len(list(Source(run / "rl"))) == sum(len(read_trajectories(file)) for file in files)


def test_an_evaluation_by_an_earlier_version_is_read_or_refused(
    tiny: Tiny, commands: Commands, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    for name in ("base", "sft", "rl"):
        place = run / "evaluate" / name
        attempts = [each for each in EvaluationFolder.load(place).latest() if isinstance(each, Trajectory)]
        summary = read_json(place / "summary.json")
        shutil.rmtree(place)
        write_trajectories(place / "trajectories" / "all.jsonl.gz", attempts)
        write_json(place / "summary.json", summary)
    recipe = tiny.file(tmp_path / "tiny.yaml")
    assert "after RL" in commands.run("run", recipe, "--run", run).out
    report = commands.run("report", "--run", run)
    assert report.code == 0, report.err
    assert "evaluation after RL" in (run / "report.html").read_text()
    assert "evaluate/rl/all 0: problem" in commands.run("show", run, "--stage", "evaluate/rl").out
    assert len(list(Source(run / "evaluate" / "rl"))) == 6
    ended = commands.run("compare", run / "evaluate" / "sft", run / "evaluate" / "rl")
    assert ended.code == 2
    require(printed(ended.err), str(run / "evaluate" / "sft"), f"delete {run / 'evaluate'}")
    # One that was not finished cannot go on.
    for stage in ("evaluate", "evaluate/rl"):
        (run / stage / "summary.json").unlink()
    ended = commands.run("evaluate", recipe, "--run", run)
    assert ended.code == 2
    require(printed(ended.err), str(run / "evaluate" / "rl"), f"delete {run / 'evaluate'}")
    shutil.rmtree(run / "evaluate")
    again = commands.run("evaluate", recipe, "--run", run)
    assert again.code == 0, again.err
    assert read_json(run / "summary.json") == read_json(undisturbed / "summary.json")


def test_a_runs_evaluations_can_be_compared_and_shown(undisturbed: Path, commands: Commands) -> None:
    ended = commands.run("compare", undisturbed / "evaluate" / "sft", undisturbed / "evaluate" / "rl")
    assert ended.code == 0, ended.err
    assert "sft" in ended.out
    assert "rl" in ended.out
    grid = commands.run("budgets", *sorted((undisturbed / "evaluate").glob("*")))  # as a shell expands RUN/evaluate/*
    assert grid.code == 0, grid.err
    assert [line.split()[0] for line in grid.out.splitlines()] == ["policy", "------", "base", "rl", "sft"]
    shown = [
        commands.run("show", undisturbed, "--stage", "evaluate/rl"),
        commands.run("show", undisturbed / "evaluate" / "rl"),
    ]
    assert [each.code for each in shown] == [0, 0], shown[0].err
    assert shown[0].out == shown[1].out
    assert "stop reason" in shown[0].out
    report = (undisturbed / "report.html").read_text()
    assert "evaluation after RL" in report
    for name in ("base", "sft", "rl"):
        assert f"evaluate/{name}/report.html" in report
        assert "Smaller budgets" in (undisturbed / "evaluate" / name / "report.html").read_text()


def test_every_logged_number_has_a_unit_and_a_meaning(undisturbed: Path) -> None:
    bookkeeping = {"stage", "step", "stage_index", "rewards", "carried"}
    logged = {name for line in RunFolder.load(undisturbed).metrics() for name in line} - bookkeeping
    assert logged <= METRICS.keys()
    assert all(metric.meaning for metric in METRICS.values())
