"""What the user can mend is one line and exit code 2; Ctrl-C is one line and 130. Never a traceback."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from aster import pipeline
from aster.config.recipe import Recipe
from aster.run import RunFolder, read_json, read_trajectories
from aster.types import StopReason
from tests.refusals import printed, refused, require
from tests.stages.runs import Commands, Tiny, reported, steps


def refuse(tiny: Tiny, folder: Path, changes: Mapping[str, Any], field: str, *named: str, stage: str = "") -> str:
    """The run, or one stage, is refused with a message of one line about this field, which holds each text of ``named``. The
    message."""
    recipe = tiny.recipe(dict(changes))
    with RunFolder.open(folder / "run", recipe, []) as run:
        work = functools.partial(pipeline.run_stage, stage) if stage else pipeline.run_all
        with refused(field, *named) as caught:
            work(recipe, run)
    return str(caught.value)


@pytest.mark.parametrize("command", ["run", "rl"])
def test_the_command_line_says_it_in_one_line(command: str, tiny: Tiny, commands: Commands, tmp_path: Path) -> None:
    recipe = tiny.file(tmp_path / "tiny.yaml", {"cold_start": "zero", "problems.train": str(tmp_path / "none.jsonl")})
    ended = commands.run(command, recipe, "--run", tmp_path / "run")
    assert (ended.code, ended.out) == (2, "")
    assert len(ended.err.splitlines()) == 1
    require(printed(ended.err), f"{tmp_path}/none.jsonl")


@pytest.mark.parametrize(
    ("content", "place", "named"),
    [
        ("", "", ""),
        ('{"prompt": "a", "answer": "1"}\n{"prompt": \n', ", line 2", "JSON"),
        ('{"prompt": "a", "answer": "1"}\n{"prompt": "b"}\n', ", line 2", "answer"),
    ],
)
@pytest.mark.parametrize("role", ["train", "evaluate"])
def test_broken_problems_are_refused_before_any_work(
    role: str, content: str, place: str, named: str, tiny: Tiny, tmp_path: Path
) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text(content)
    refuse(tiny, tmp_path, {f"problems.{role}": str(path)}, f"{path}{place}", named)
    assert not (tmp_path / "run" / "synthesize").exists()


def test_experts_cannot_teach_other_problems(tiny: Tiny, coin_problems: Path, tmp_path: Path) -> None:
    refuse(tiny, tmp_path, {"problems.teach": str(coin_problems)}, "problems.teach", "synthesize.teacher")


ENDPOINT = {"rollout.deterministic": False, "policy.sampler": "endpoint", "policy.base_url": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("stage", "changes", "field", "named"),
    [
        ("", {}, "policy.sampler", " sft "),
        ("rl", {"cold_start": "zero"}, "policy.sampler", " rl "),
        ("evaluate", {}, "evaluate.policies", "[base]"),
    ],
)
def test_an_endpoint_is_not_trained(
    stage: str, changes: dict[str, Any], field: str, named: str, tiny: Tiny, tmp_path: Path
) -> None:
    refuse(tiny, tmp_path, {**ENDPOINT, **changes}, field, named, stage=stage)
    assert not (tmp_path / "run" / (stage or "synthesize")).exists()


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("rl.stages.0.limits", {"rl.stages": [{"limits": {"context_tokens": 5001}}]}),
        ("evaluate.limits", {"evaluate.limits.context_tokens": 5001}),
        ("synthesize.limits", {"synthesize.teacher": "policy", "synthesize.limits.context_tokens": 5001}),
    ],
)
def test_contexts_beyond_the_cache_are_refused_before_any_work(
    field: str, changes: dict[str, Any], tiny: Tiny, tmp_path: Path
) -> None:
    small = {**changes, "rollout.cache_tokens": 5000}
    refuse(tiny, tmp_path, small, f"{field}.context_tokens", "5001", "5000", "rollout.cache_tokens")
    assert not (tmp_path / "run" / "synthesize").exists()
    # The cache of the recipe is large enough; the model's context is not.
    assert "rollout.cache_tokens" not in refuse(tiny, tmp_path, changes, f"{field}.context_tokens", "5001")
    assert not (tmp_path / "run" / "synthesize").exists()


@pytest.fixture
def copied(coin_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(coin_model, tmp_path / "model"))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("gone", "/model"),
        ("no config", "config.json"),
        ("no weights", "*.safetensors"),
        ("cut weights", "header"),
        ("garbage", ""),
        ("a tensor missing", "model.layers.0.self_attn.q_proj.weight"),
        ("another shape", "shape"),
        ("broken config", "JSON"),
        ("broken tokenizer", "tokenizer"),
        ("no tokenizer", ""),
    ],
)
def test_damaged_models_are_refused(damage: str, named: str, tiny: Tiny, copied: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = copied / "model.safetensors"
    if damage == "gone":
        shutil.rmtree(copied)
    elif damage == "no config":
        (copied / "config.json").unlink()
    elif damage == "no weights":
        weights.unlink()
    elif damage == "cut weights":
        os.truncate(weights, weights.stat().st_size // 2)
    elif damage == "garbage":
        weights.write_bytes(b"not a model" * 100)
    elif damage in ("a tensor missing", "another shape"):
        tensors = load_file(weights)
        name = "model.layers.0.self_attn.q_proj.weight"
        tensor = tensors.pop(name)
        save_file(tensors if damage == "a tensor missing" else {**tensors, name: tensor[:8]}, weights, {"format": "pt"})
    elif damage == "broken config":
        (copied / "config.json").write_text("{")
    elif damage == "broken tokenizer":
        (copied / "tokenizer.json").write_text("{")
    else:
        for file in copied.glob("tokenizer*"):
            file.unlink()
    refuse(tiny, tmp_path, {"cold_start": "zero", "model.path": str(copied)}, "model.path", named)


@pytest.mark.parametrize(
    ("changes", "field", "named"),
    [
        ({"model.path": "package:no.such-package"}, "model.path", "package:no.such-package"),
        ({"model.device": "abacus"}, "model.device", "abacus"),
        ({"sandbox.preload": ["no_such_package"]}, "sandbox.preload", "'no_such_package'"),
    ],
)
def test_other_wrong_fields_are_refused(changes: dict[str, Any], field: str, named: str, tiny: Tiny, tmp_path: Path) -> None:
    refuse(tiny, tmp_path, {"cold_start": "zero", **changes}, field, named)


def test_a_first_attempt_that_did_nothing_does_not_hold_the_folder(tiny: Tiny, tmp_path: Path) -> None:
    wrong = {"cold_start": "zero", "model.path": str(tmp_path)}
    refuse(tiny, tmp_path, wrong, "model.path", "config.json")
    recipe = tiny.recipe({"cold_start": "zero"})
    with RunFolder.open(tmp_path / "run", recipe, ["second"]) as run:
        assert run.recipe == recipe.model_dump(mode="json")
        run.log("rl", 1, loss=0.0)
    assert RunFolder.load(tmp_path / "run").recipe == recipe.model_dump(mode="json")
    with refused(str(tmp_path / "run"), "model.path"):
        RunFolder.open(tmp_path / "run", tiny.recipe(wrong))


def test_a_recipe_written_by_hand_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("seed: 3  # mine\n")
    with refused(str(tmp_path), "seed", "--run"):
        RunFolder.open(tmp_path, Recipe())
    assert (tmp_path / "recipe.yaml").read_text() == "seed: 3  # mine\n"


@pytest.mark.parametrize(("stage", "needed"), [("curate", "synthesize"), ("sft", "curate"), ("rl", "sft")])
def test_a_stage_needs_the_one_before(stage: str, needed: str, tiny: Tiny, commands: Commands, tmp_path: Path) -> None:
    ended = commands.run(stage, tiny.file(tmp_path / "tiny.yaml"), "--run", tmp_path / "run")
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    require(printed(ended.err), stage, f"{tmp_path}/run", f"aster {needed}")


def test_cold_start_zero_has_no_cold_start_stages(tiny: Tiny, tmp_path: Path) -> None:
    for stage in ("synthesize", "curate", "sft"):
        refuse(tiny, tmp_path, {"cold_start": "zero"}, stage, "zero", stage=stage)


def test_a_locked_folder_is_refused(tiny: Tiny, commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with open(tmp_path / "run" / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ended = commands.run("run", tiny.file(tmp_path / "tiny.yaml"), "--run", tmp_path / "run")
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    require(printed(ended.err), f"{tmp_path}/run", "process", "--run")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1.5 MB: the trajectories fit in it, a checkpoint does not."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a full disk needs a file system of its own: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(
    tiny: Tiny, commands: Commands, small_disk: Path, tmp_path: Path
) -> None:
    changes = {"cold_start": "zero", "rl.stages": [{"steps": 1, "limits": tiny.settings["rl"]["stages"][0]["limits"]}]}
    command = ("rl", tiny.file(tmp_path / "tiny.yaml", changes), "--run", small_disk / "run")
    full = commands.run(*command)
    assert full.code == 2
    require(printed(full.err), f"{small_disk}/run/rl/checkpoints/step_000001")
    assert "Traceback" not in full.err
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    again = commands.run(*command)
    assert again.code == 0, again.err
    assert RunFolder.load(small_disk / "run").summary("rl") is not None


def test_curation_that_leaves_nothing_says_where_it_went(tiny: Tiny, commands: Commands, tmp_path: Path) -> None:
    changes = {"curate.dense_calls": 2, "synthesize.problems": 4}
    ended = commands.run("run", tiny.file(tmp_path / "tiny.yaml", changes), "--run", tmp_path / "run")
    assert ended.code == 2
    funnel = ("attempts: 4", "answer verified: 4", "every call succeeded: 4", "at least 2 tool calls: 0")
    require(printed(ended.err), "curate", ", ".join(funnel))


def test_a_prompt_beyond_the_context_is_recorded(tiny: Tiny, tmp_path: Path) -> None:
    limits = {"context_tokens": 8, "turn_tokens": 8}
    recipe = tiny.recipe({"cold_start": "zero", "rl.stages": [{"steps": 2, "limits": limits}], "evaluate.limits": limits})
    with RunFolder.open(tmp_path / "run", recipe, []) as run:
        pipeline.run_all(recipe, run)
    files = sorted((tmp_path / "run").rglob("*.jsonl.gz"))
    assert len(files) == 4
    for file in files:
        assert {t.stop_reason for t in read_trajectories(file)} == {StopReason.TOKEN_BUDGET}
    assert read_json(tmp_path / "run" / "summary.json")["rl"]["accuracy"] == 0


def test_an_error_in_an_attempt_is_one_line(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts run in a task group, which wraps what they raise. Here the grader's worker process cannot be started."""
    (tmp_path / "sums.jsonl").write_text('{"prompt": "Toss 1", "answer": "\\\\int_0^1 x\\\\,dx"}\n')
    from aster.grading import pool

    pool.close()
    monkeypatch.setattr(pool, "sys", types.SimpleNamespace(executable="/nonexistent/python"))
    changes = {"cold_start": "zero", "problems.train": str(tmp_path / "sums.jsonl")}
    refuse(tiny, tmp_path, changes, "grading", stage="rl")


def test_ctrl_c_ends_a_run_with_one_line_and_it_resumes(tiny: Tiny, commands: Commands, tmp_path: Path) -> None:
    """The real command line, in a process group of its own as a terminal makes one."""
    run = tmp_path / "run"
    limits = tiny.settings["rl"]["stages"][0]["limits"]
    changes = {"cold_start": "zero", "rl.stages": [{"steps": 40, "limits": limits}]}
    recipe = tiny.file(tmp_path / "tiny.yaml", changes)
    command = [sys.executable, "-m", "aster", "rl", str(recipe), "--run", str(run)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, process_group=0)
    while steps(run, "rl") < 2 and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1].startswith("aster: interrupted")
    assert "Traceback" not in errors
    done = steps(run, "rl")
    again = commands.killed(lambda: steps(run, "rl") > done, "rl", recipe, "--run", run, number=signal.SIGINT)
    assert again.code == 130
    assert reported(again.err, "rl", f"step ({done}|{done - 1})")
    assert again.err.splitlines()[-1].startswith("aster: interrupted")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rl.algorithm": "no_such_file.py:loss"}, "rl.algorithm"),
        ({"environment.reward": "no_such_file.py:reward"}, "environment.reward"),
        ({"tools": ["python", "no_such_file.py:tool"]}, "tools.1"),
    ],
)
def test_a_door_that_leads_nowhere_is_refused_before_any_work(
    changes: dict[str, Any], field: str, tiny: Tiny, tmp_path: Path
) -> None:
    refuse(tiny, tmp_path, changes, field)
    assert not (tmp_path / "run" / "synthesize").exists()
