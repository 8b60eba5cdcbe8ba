"""The run folder: whole files or none, one process at a time, one recipe, and what a kill leaves behind."""

from __future__ import annotations

import errno
import gzip
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aster.config import ColdStart, Rl, RlStage, Sandbox
from aster.config.recipe import Recipe
from aster.run import (
    RunFolder,
    iterate_trajectories,
    read_json,
    read_json_lines,
    read_trajectories,
    replacing,
    write_json,
    write_trajectories,
)
from aster.types import Problem, Trajectory
from tests.refusals import refused


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.open(tmp_path / "run", Recipe(), ["aster", "run"])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert [entry.name for entry in path.parent.iterdir() if not entry.name.startswith(".")] == ["file.json"]


def test_a_failed_trajectory_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.gz"
    write_trajectories(path, [Trajectory("p", 0, 1)])

    def failing() -> list[Trajectory]:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_trajectories(path, (trajectory for trajectory in failing()))
    assert [trajectory.problem_id for trajectory in read_trajectories(path)] == ["p"]


def test_folders_are_replaced_whole_and_leftovers_of_a_kill_are_not_taken_for_checkpoints(run: RunFolder) -> None:
    target = run.checkpoint_path("rl", 3)
    killed = target.with_name(f".{target.name}.partial")
    killed.mkdir(parents=True)
    (killed / "half").write_text("")
    assert run.checkpoints("rl") == []
    for content in ("old", "new"):
        with replacing(target) as partial:
            partial.mkdir()
            (partial / content).write_text(content)
    assert [entry.name for entry in target.iterdir()] == ["new"]
    assert run.checkpoints("rl") == [(3, target)]


def test_only_the_newest_checkpoints_stay(run: RunFolder) -> None:
    for step in (2, 9, 10, 11):
        run.checkpoint_path("rl", step).mkdir(parents=True)
    run.prune_checkpoints("rl", keep=2)
    assert [step for step, _ in run.checkpoints("rl")] == [10, 11]


def test_a_torn_last_line_is_left_out_and_the_next_line_does_not_continue_it(run: RunFolder) -> None:
    run.log("rl", 1, reward=0.5)
    run.remember_problems([Problem("p1", "one", "1")])
    run.close()
    for name in ("metrics.jsonl", "problems.jsonl"):
        with open(run.path / name, "ab") as stream:
            stream.write('{"stage": "rl", "id": "\u00e9'.encode()[:-1])
    assert [line["step"] for line in RunFolder.load(run.path).metrics("rl")] == [1]
    with RunFolder.open(run.path, Recipe()) as resumed:
        resumed.log("rl", 2, reward=0.6)
        resumed.remember_problems([Problem("p2", "two", "2")])
        assert [line["step"] for line in resumed.metrics("rl")] == [1, 2]
        assert set(resumed.problems()) == {"p1", "p2"}


def test_a_broken_whole_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"a": 1}\n{"a"\n{"a')
    with refused(f"{path}, line 2", "JSON"):
        read_json_lines(path)


def test_a_resumed_stage_forgets_its_own_later_lines_alone(run: RunFolder) -> None:
    for stage in ("sft", "rl"):
        for step in (1, 2, 3):
            run.log(stage, step)
    run.forget_metrics("rl", after_step=1)
    assert [(line["stage"], line["step"]) for line in run.metrics()] == [("sft", 1), ("sft", 2), ("sft", 3), ("rl", 1)]


def test_problems_are_kept_once_with_any_text(run: RunFolder) -> None:
    odd = "a\u2028b\x85c\ud800\n\u00e9"
    problems = [Problem("p", odd, "1", source="s"), Problem("p", odd, "1", source="s")]
    run.remember_problems(problems)
    run.remember_problems(problems)
    run.close()
    with RunFolder.open(run.path, Recipe()) as resumed:
        resumed.remember_problems(problems)
        assert resumed.problems() == {"p": {"id": "p", "prompt": odd, "answer": "1", "source": "s"}}
    assert len((run.path / "problems.jsonl").read_bytes().splitlines()) == 1


def test_trajectories_are_read_back_with_any_text(tmp_path: Path) -> None:
    trajectory = Trajectory("p", 0, 1, answer="\ud800\u2028")
    write_trajectories(tmp_path / "t.jsonl.gz", [trajectory, trajectory])
    assert list(iterate_trajectories(tmp_path / "t.jsonl.gz")) == [trajectory, trajectory]


@pytest.mark.parametrize(
    ("damage", "place", "named"),
    [
        ("cut", "", ""),
        ("flipped", "", ""),
        ("plain", "", "gzip"),
        ("list", ", line 1", "list"),
        ("field", ", line 1", "KeyError: 'turns'"),
        ("gone", "", ""),
    ],
)
def test_damaged_trajectory_files_are_named(tmp_path: Path, damage: str, place: str, named: str) -> None:
    path = tmp_path / "t.jsonl.gz"
    write_trajectories(path, [Trajectory("p", 0, 1, token_ids=list(range(500)))])
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-10])
    elif damage == "flipped":
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    elif damage == "plain":
        path.write_text("{}")
    elif damage in ("list", "field"):
        path.write_bytes(gzip.compress(b"[1]\n" if damage == "list" else b"{}\n"))
    else:
        path.unlink()
    with refused(f"{path}{place}", named):
        read_trajectories(path)


def test_a_finished_stage_is_seen_when_the_run_goes_on(run: RunFolder) -> None:
    assert run.summary("evaluate/base") is None
    run.finish("evaluate/base", {"accuracy": 0.5})
    run.close()
    with RunFolder.open(run.path, Recipe()) as resumed:
        assert resumed.summary("evaluate/base") == {"accuracy": 0.5}
        assert resumed.summary("sft") is None


def test_run_json_keeps_every_command_and_the_versions(run: RunFolder) -> None:
    run.close()
    with RunFolder.open(run.path, Recipe(), ["aster", "rl"]) as resumed:
        resumed.begin()
    about = read_json(run.path / "run.json")
    assert about["commands"] == [["aster", "run"], ["aster", "rl"]]
    assert {"python", "torch", "numpy"} <= about["versions"].keys()


def test_another_recipe_is_refused_and_its_field_named(run: RunFolder) -> None:
    run.log("sft", 1)  # a folder in which nothing was done yet would take the new recipe
    run.close()
    for recipe, field in (
        (Recipe(cold_start=ColdStart.ZERO), "cold_start"),
        (Recipe(rl=Rl(prompts=3)), "rl.prompts"),
        (Recipe(rl=Rl(stages=[RlStage(), RlStage(steps=3, drop_solved=True)])), "rl.stages.1.steps"),
        (Recipe(rl=Rl(stages=[RlStage()])), "rl.stages"),
    ):
        for read in (RunFolder.open, RunFolder.load):
            with refused(str(run.path)) as caught:
                read(run.path, recipe)
            assert re.search(rf"\b{re.escape(field)}(?![\w.])", str(caught.value))
    # A refusal keeps no lock and changes nothing.
    with RunFolder.open(run.path, Recipe()) as resumed:
        assert resumed.recipe == Recipe().model_dump(mode="json")


def test_a_run_goes_on_with_other_sandbox_services(run: RunFolder) -> None:
    run.log("sft", 1)
    run.close()
    moved = Recipe(sandbox=Sandbox(addresses=["http://10.0.0.5:8080"]))
    with RunFolder.open(run.path, moved) as resumed:
        assert resumed.metrics("sft")


def test_one_process_at_a_time(run: RunFolder) -> None:
    with refused(str(run.path), "process", "--run"):
        RunFolder.open(run.path, Recipe())
    assert RunFolder.load(run.path).recipe == Recipe().model_dump(mode="json")  # reading needs no lock
    run.close()
    RunFolder.open(run.path, Recipe()).close()


def test_a_killed_process_lets_go_of_the_folder(tmp_path: Path) -> None:
    code = (
        "import os, sys; from aster.run import RunFolder; from aster.config.recipe import Recipe; "
        "run = RunFolder.open(sys.argv[1], Recipe()); run.log('rl', 1); os.kill(os.getpid(), 9)"
    )
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=False)
    assert process.returncode == -9
    with RunFolder.open(tmp_path / "run", Recipe()) as run:
        assert len(run.metrics("rl")) == 1


def test_folders_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "run", tmp_path / "file", Path("/proc/run")):
        with refused(str(path)) as caught:
            RunFolder.open(path, Recipe())
        assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_the_users_to_mend(run: RunFolder) -> None:
    (run.path / "metrics.jsonl").symlink_to("/dev/full")
    with refused(str(run.path / "metrics.jsonl"), os.strerror(errno.ENOSPC)):
        run.log("rl", 1)


def test_a_folder_without_a_recipe_is_no_run(tmp_path: Path) -> None:
    with refused(str(tmp_path), "recipe.yaml"):
        RunFolder.load(tmp_path)


def test_broken_json_is_named(run: RunFolder) -> None:
    (run.path / "sft").mkdir()
    (run.path / "sft" / "summary.json").write_text("{")
    with refused(str(run.path / "sft" / "summary.json"), "JSON"):
        run.summary("sft")
