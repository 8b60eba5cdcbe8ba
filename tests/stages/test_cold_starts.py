"""Cold starts other than the scripted ones: a given set, and none with the tool demanded by the prompt."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from aster import pipeline
from aster.data.curation.sources import Source
from aster.data.sets import write_set
from aster.run import RunFolder, read_json_lines, read_trajectories
from tests.data.curation.transcripts import calls, step, transcript
from tests.refusals import refused
from tests.stages.runs import Tiny


def texts(run: RunFolder, stage: str, name: str, turn: int = 0) -> set[str]:
    """One turn of every trajectory of a file, as text."""
    from aster.data.text import turn_texts

    return {turn_texts(run, trajectory)[turn] for trajectory in read_trajectories(run.path / stage / f"{name}.jsonl.gz")}


def test_a_set_is_rendered_filtered_as_the_recipe_says_and_trained_on(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "brought.jsonl.gz"
    attempts = [
        transcript(f"p{n}", step("run", ("v=1\nv", "1")), prompt="What is it?", answer="1", reward=None, system="Be brief.")
        for n in range(9)
    ]
    write_set(path, [*attempts, calls("none", 0)])
    changes = {"cold_start": str(path), "curate.size": None, "curate.density": {"min": 1}}
    recipe = tiny.recipe(changes)
    with RunFolder.open(tmp_path / "run", recipe, []) as run:
        with refused("synthesize", "brought"):
            pipeline.run_stage("synthesize", recipe, run)
        pipeline.run_stage("curate", recipe, run)
        pipeline.run_stage("sft", recipe, run)
        curated, sft = run.summary("curate"), run.summary("sft")
        assert curated is not None
        assert sft is not None
        # Nobody verified these answers: a set is taken as it is but for what the recipe asks.
        assert [step["filter"] for step in curated["funnel"]] == ["attempts", "at least 1 tool calls"]
        assert (curated["kept"], curated["tool_calls"], sft["trajectories"]) == (9, 1.0, 9)
        assert curated["trained_tokens"] == sum(
            t.sampled_tokens for t in read_trajectories(run.trajectory_file("curate", "kept"))
        )
        [prompt] = texts(run, "curate", "trajectories/kept")
        assert "Be brief." in prompt
        assert "What is it?" in prompt
        assert [line["problem_id"] for line in read_json_lines(run.path / "curate" / "dropped.jsonl")] == ["none"]
        read = list(Source(run.path))
        assert [(t.problem_id, t.prompt, t.calls[0].code, t.answer) for t in read] == [
            (t.problem_id, t.prompt, t.calls[0].code, t.answer) for t in attempts
        ]


def test_a_run_folder_is_a_set_too(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny.recipe({"synthesize.problems": 8})
    with RunFolder.open(tmp_path / "first", recipe, []) as first:
        pipeline.run_stage("synthesize", recipe, first)
        pipeline.run_stage("curate", recipe, first)
    assert len(list(Source(tmp_path / "first" / "synthesize"))) == 8
    changes = {"cold_start": str(tmp_path / "first"), "curate.size": None}
    recipe = tiny.recipe(changes)
    with RunFolder.open(tmp_path / "second", recipe, []) as second:
        pipeline.run_stage("curate", recipe, second)
    kept = [read_trajectories(run.trajectory_file("curate", "kept")) for run in (first, second)]
    assert [t.token_ids for t in kept[0]] == [t.token_ids for t in kept[1]]
    assert [t.loss_mask for t in kept[0]] == [t.loss_mask for t in kept[1]]


def test_a_set_in_which_an_id_is_two_problems_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    """The run remembers problems by their ids: one attempt would be read back with the other's prompt and answer."""
    path = tmp_path / "mixed.jsonl"
    write_set(path, [calls("p", 2), dataclasses.replace(calls("p", 2), prompt="Another one.")])
    changes = {"cold_start": str(path), "curate.size": None}
    recipe = tiny.recipe(changes)
    with (
        RunFolder.open(tmp_path / "run", recipe, []) as run,
        refused("cold_start", str(path), "'p'"),
    ):
        pipeline.run_stage("curate", recipe, run)
    assert run.summary("curate") is None


def test_a_set_that_is_not_there_is_said_before_anything_is_done(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny.recipe({"cold_start": str(tmp_path / "none.jsonl")})
    with (
        RunFolder.open(tmp_path / "run", recipe, []) as run,
        refused("cold_start", str(tmp_path / "none.jsonl")),
    ):
        pipeline.run_all(recipe, run)


def test_the_demand_for_the_tool_is_in_every_prompt_of_rl_and_evaluation(tiny: Tiny, tmp_path: Path) -> None:
    limits = {**tiny.settings["rl"]["stages"][0]["limits"], "context_tokens": 400}
    changes = {
        "cold_start": "zero_force_tool",
        "rollout.force_tool": {"system": "You must call the tool.", "prompt": "Run "},
        "rl.stages": [{"steps": 1, "limits": limits}],
        "evaluate.limits": limits,
    }
    recipe = tiny.recipe(changes)
    with RunFolder.open(tmp_path / "run", recipe, []) as run:
        with refused("sft", "zero_force_tool"):
            pipeline.run_stage("sft", recipe, run)
        pipeline.run_stage("rl", recipe, run)
        pipeline.run_stage("evaluate", recipe, run)
        for stage, name in (
            ("rl", "trajectories/step_000001"),
            ("evaluate/base", "attempts/part_00001"),
            ("evaluate/rl", "attempts/part_00001"),
        ):
            for prompt in texts(run, stage, name):
                assert prompt.startswith("<|im_start|>system\nYou must call the tool.\n\n# Tools")
                assert "<|im_start|>user\nRun Toss" in prompt
