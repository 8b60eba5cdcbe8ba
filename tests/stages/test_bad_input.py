"""What the user can mend is one line and exit code 2; Ctrl-C is one line and 130. Never a traceback."""

from __future__ import annotations

import fcntl
import functools
import os
import re
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
from aster.errors import UserError
from aster.run import RunFolder, read_json, read_trajectories
from aster.types import StopReason
from tests.stages.runs import Commands, Tiny, steps


def refuse(tiny: Tiny, folder: Path, changes: Mapping[str, Any], message: str, stage: str = "") -> None:
    """The run, or one stage, is refused with a message of one line."""
    recipe = tiny.recipe(dict(changes))
    with RunFolder.open(folder / "run", recipe, []) as run:
        work = functools.partial(pipeline.run_stage, stage) if stage else pipeline.run_all
        with pytest.raises(UserError, match=re.escape(message)) as caught:
            work(recipe, run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ["run", "rl"])
def test_the_command_line_says_it_in_one_line(command: str, tiny: Tiny, commands: Commands, tmp_path: Path) -> None:
    recipe = tiny.file(tmp_path / "tiny.yaml", {"cold_start": "zero", "problems.train": str(tmp_path / "none.jsonl")})
    ended = commands.run(command, recipe, "--run", tmp_path / "run")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"aster: error: {tmp_path}/none.jsonl: no such file\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "problems.jsonl: no problems in it"),
        ('{"prompt": "a", "answer": "1"}\n{"prompt": \n', "problems.jsonl, line 2: not JSON"),
        ('{"prompt": "a", "answer": "1"}\n{"prompt": "b"}\n', "problems.jsonl, line 2: no answer"),
    ],
)
@pytest.mark.parametrize("role", ["train", "evaluate"])
def test_broken_problems_are_refused_before_any_work(role: str, content: str, message: str, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "problems.jsonl").write_text(content)
    refuse(tiny, tmp_path, {f"problems.{role}": str(tmp_path / "problems.jsonl")}, message)
    assert not (tmp_path / "run" / "synthesize").exists()


def test_experts_cannot_teach_other_problems(tiny: Tiny, coin_problems: Path, tmp_path: Path) -> None:
    refuse(tiny, tmp_path, {"problems.teach": str(coin_problems)}, "problems.teach: ")


ENDPOINT = {"rollout.deterministic": False, "policy.sampler": "endpoint", "policy.base_url": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ("", {}, "policy.sampler: the stage sft trains, and an endpoint cannot be trained"),
        ("rl", {"cold_start": "zero"}, "policy.sampler: the stage rl trains, and an endpoint cannot be trained"),
        ("evaluate", {}, "evaluate.policies: an endpoint serves one model"),
    ],
)
def test_an_endpoint_is_not_trained(stage: str, changes: dict[str, Any], message: str, tiny: Tiny, tmp_path: Path) -> None:
    refuse(tiny, tmp_path, {**ENDPOINT, **changes}, message, stage)
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
    refuse(tiny, tmp_path, {**changes, "rollout.cache_tokens": 5000}, f"{field}.context_tokens: a context of 5001 tokens")
    assert not (tmp_path / "run" / "synthesize").exists()
    refuse(tiny, tmp_path, changes, f"{field}.context_tokens: 5001 is more than the")
    assert not (tmp_path / "run" / "synthesize").exists()


@pytest.fixture
def copied(coin_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(coin_model, tmp_path / "model"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("gone", "model: no such folder or file"),
        ("no config", "it has no config.json"),
        ("no weights", "the folder has no weights"),
        ("cut weights", "the model cannot be loaded: Error while deserializing header: incomplete metadata"),
        ("garbage", "the model cannot be loaded"),
        ("a tensor missing", "its files hold no weights for 1 parameters, such as model.layers.0.self_attn.q_proj.weight"),
        ("another shape", "its files hold weights of another shape for 1 parameters, such as model.layers.0.self_attn.q_proj"),
        ("broken config", "config.json' is not a valid JSON file"),
        ("broken tokenizer", "its tokenizer cannot be loaded"),
        ("no tokenizer", "model.path: "),
    ],
)
def test_damaged_models_are_refused(damage: str, message: str, tiny: Tiny, copied: Path, tmp_path: Path) -> None:
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
    refuse(tiny, tmp_path, {"cold_start": "zero", "model.path": str(copied)}, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.path": "package:no.such-package"}, "package:no.such-package: no such package"),
        ({"model.device": "abacus"}, "model.device: abacus: must be cpu"),
        ({"sandbox.preload": ["no_such_package"]}, "sandbox.preload: 'no_such_package'"),
    ],
)
def test_other_wrong_fields_are_refused(changes: dict[str, Any], message: str, tiny: Tiny, tmp_path: Path) -> None:
    refuse(tiny, tmp_path, {"cold_start": "zero", **changes}, message)


def test_a_first_attempt_that_did_nothing_does_not_hold_the_folder(tiny: Tiny, tmp_path: Path) -> None:
    wrong = {"cold_start": "zero", "model.path": str(tmp_path)}
    refuse(tiny, tmp_path, wrong, "it has no config.json")
    recipe = tiny.recipe({"cold_start": "zero"})
    with RunFolder.open(tmp_path / "run", recipe, ["second"]) as run:
        assert run.recipe == recipe.model_dump(mode="json")
        run.log("rl", 1, loss=0.0)
    assert RunFolder.load(tmp_path / "run").recipe == recipe.model_dump(mode="json")
    with pytest.raises(UserError, match=r"another recipe \(they differ in model.path\)"):
        RunFolder.open(tmp_path / "run", tiny.recipe(wrong))


def test_a_recipe_written_by_hand_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("seed: 3  # mine\n")
    with pytest.raises(UserError, match="another recipe"):
        RunFolder.open(tmp_path, Recipe())
    assert (tmp_path / "recipe.yaml").read_text() == "seed: 3  # mine\n"


@pytest.mark.parametrize(("stage", "needed"), [("curate", "synthesize"), ("sft", "curate"), ("rl", "sft")])
def test_a_stage_needs_the_one_before(stage: str, needed: str, tiny: Tiny, commands: Commands, tmp_path: Path) -> None:
    ended = commands.run(stage, tiny.file(tmp_path / "tiny.yaml"), "--run", tmp_path / "run")
    assert ended.code == 2
    message = f"{stage}: the stage {needed} has not finished in {tmp_path}/run; run it first (aster {needed} ...)"
    assert ended.err == f"aster: error: {message}\n"


def test_cold_start_zero_has_no_cold_start_stages(tiny: Tiny, tmp_path: Path) -> None:
    for stage in ("synthesize", "curate", "sft"):
        refuse(tiny, tmp_path, {"cold_start": "zero"}, f"{stage}: cold start zero has no such stage", stage)


def test_a_locked_folder_is_refused(tiny: Tiny, commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with open(tmp_path / "run" / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ended = commands.run("run", tiny.file(tmp_path / "tiny.yaml"), "--run", tmp_path / "run")
    assert ended.code == 2
    assert ended.err == (
        f"aster: error: {tmp_path}/run: another process is running in this folder; wait for it or choose another --run\n"
    )


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
    said = full.err.splitlines()[-1]
    assert said.startswith(f"aster: error: {small_disk}/run/rl/checkpoints/step_000001: cannot be written: ")
    assert said.endswith("free space or make it writable, then give the same command again: the run resumes")
    assert "Traceback" not in full.err
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    again = commands.run(*command)
    assert again.code == 0, again.err
    assert RunFolder.load(small_disk / "run").summary("rl") is not None


def test_curation_that_leaves_nothing_says_where_it_went(tiny: Tiny, commands: Commands, tmp_path: Path) -> None:
    changes = {"curate.dense_calls": 2, "synthesize.problems": 4}
    ended = commands.run("run", tiny.file(tmp_path / "tiny.yaml", changes), "--run", tmp_path / "run")
    assert ended.code == 2
    assert ended.err.splitlines()[-1].startswith(
        "aster: error: curate: no trajectory is left (attempts: 4, answer verified: 4, every call succeeded: 4, "
        "at least 2 tool calls: 0)"
    )


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
    refuse(tiny, tmp_path, changes, "grading: the worker process did not start", "rl")


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
    assert errors.splitlines()[-1] == "aster: interrupted; the same command resumes the run"
    assert "Traceback" not in errors
    done = steps(run, "rl")
    again = commands.killed(lambda: steps(run, "rl") > done, "rl", recipe, "--run", run, number=signal.SIGINT)
    assert again.code == 130
    assert re.search(rf"rl: resuming after step ({done}|{done - 1})\n", again.err)
    assert again.err.splitlines()[-1] == "aster: interrupted; the same command resumes the run"
