"""Fixtures: a run folder with every stage in it, written by hand, and its report."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from aster.config.recipe import Recipe
from aster.report import write_report
from aster.run import RunFolder, write_json, write_trajectories
from aster.types import CallStatus, Problem, StopReason, ToolCall, Trajectory

HOSTILE = "<script>alert('x')</script> & \"quoted\" {{ 7 * 7 }}"


def byte_tokenizer() -> Tokenizer:
    """A tokenizer with one token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def attempt(problem_id: str, sample: int, calls: int, reward: float, extra: str = "") -> Trajectory:
    """A trajectory with ``calls`` calls and a final answer."""
    tokenizer = byte_tokenizer()

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text).ids

    trajectory = Trajectory(problem_id, sample, seed=sample, reward=reward, stop_reason=StopReason.ANSWERED, answer="4")
    trajectory.append("prompt", ids(f"What is 2+2? {extra}"))
    for number in range(calls):
        text = ids(f"<think>plan {number} {extra}</think><tool_call>\n{{}}\n</tool_call>")
        turn = trajectory.append("assistant", text, [-0.5] * len(text))
        turn.calls.append(ToolCall(f"print({number}) # {extra}", CallStatus.OK, f"printed {number} {extra}", 0.01))
        trajectory.append("tool", ids(f"printed {number} {extra}"))
    final = ids(f"The sum is 4. {extra}")
    trajectory.append("assistant", final, [-0.1] * len(final))
    return trajectory


def fill(path: Path, extra: str = "") -> RunFolder:
    """Write every stage of a run under ``path``."""
    run = RunFolder.open(path, Recipe(name="filled"), ["aster", "run", "recipe.yaml"])
    (path / "tokenizer").mkdir()
    byte_tokenizer().save(str(path / "tokenizer" / "tokenizer.json"))
    run.remember_problems([Problem(f"p{number}", f"What is 2+2? {extra}", "4") for number in range(4)])
    run.finish("curate", {"funnel": [{"filter": "all", "kept": 40}, {"filter": "correct", "kept": 31}]})
    for step in range(1, 9):
        run.log("sft", step, loss=2.0 / step, stage_index=step // 5)
    for step in range(1, 13):
        run.log(
            "rl",
            step,
            stage_index=step // 7,
            reward=0.5 + step / 50,
            tool_calls=8.0,
            entropy=0.4,
            tokens_per_trajectory=200.0,
            stop_reasons={"answered": 30, "call_budget": 2},
        )
    run.finish("sft", {})
    for policy in ("base", "sft", "rl"):
        trajectories = [attempt(f"p{number}", 0, calls=number, reward=float(number % 2), extra=extra) for number in range(4)]
        write_trajectories(run.trajectory_file(f"evaluate/{policy}", "all"), trajectories)
    write_trajectories(run.trajectory_file("rl", "step_000011"), [attempt("p0", 0, 1, 0.0, extra)])
    write_trajectories(
        run.trajectory_file("rl", "step_000012"), [attempt("p1", 0, 2, 1.0, extra), attempt("p2", 1, 3, 0.0, extra)]
    )
    results = {
        policy: {
            "accuracy": accuracy,
            "low": accuracy - 0.03,
            "high": accuracy + 0.03,
            "k": 16,
            "problems": 128,
            "tool_calls": calls,
        }
        for policy, accuracy, calls in (("base", 0.359, 0.0), ("sft", 0.688, 8.43), ("rl", 0.844, 8.61))
    }
    write_json(path / "summary.json", results)
    run.close()
    return RunFolder.load(path)


@pytest.fixture(scope="session")
def filled_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a complete run with hostile text."""
    return write_report(fill(tmp_path_factory.mktemp("page") / "filled", HOSTILE)).read_text(encoding="utf-8")


@pytest.fixture
def filled_run(tmp_path: Path) -> RunFolder:
    """A complete run whose model, tool and problems wrote hostile text."""
    return fill(tmp_path / "filled", HOSTILE)
