"""The examples, run: each to a rising reward or to a stated result."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

import aster
from aster import rl
from aster.chat import ParsedCall
from aster.config import Environment as EnvironmentSection
from aster.config import Problems, Sandbox
from aster.config import Tool as ToolSection
from aster.config.recipe import Recipe
from aster.environments import Environment
from aster.environments.opening import make_environment
from aster.environments.problems import evaluation_problems, training_problems
from aster.rollout import Decoding, rollout
from aster.run import RunFolder
from aster.types import Problem, StopReason, Trajectory
from tests.rollout.scripted import DIALECT, WIDE, ScriptedFakeSampler
from tests.stages.runs import LIMITS, Tiny

EXAMPLES = Path(__file__).parents[2] / "examples"
TRAINING = {
    "cold_start": "zero",
    "rl.learning_rate": 3e-4,
    "rl.stages": [{"steps": 9, "limits": LIMITS}],
    "rl.prompts": 8,
    "rl.samples": 8,
}


SOURCE = Path(aster.__file__).parent


def digest() -> str:
    """Of every file of the package's source."""
    found = hashlib.sha256()
    for file in sorted(SOURCE.rglob("*.py")):
        found.update(file.read_bytes())
    return found.hexdigest()


@pytest.fixture(scope="module", autouse=True)
def _source_is_as_it_was() -> Iterator[None]:
    """A reward, a tool or a loss of the user's changes nothing in the package: each is one file and one line of a recipe."""
    before = digest()
    yield
    assert digest() == before


def rewards(tiny: Tiny, folder: Path, changes: dict[str, Any]) -> list[float]:
    """The mean reward of each RL step, on the model that tosses coins."""
    recipe = tiny.recipe({**TRAINING, **changes})
    with RunFolder.open(folder / "run", recipe, []) as run:
        rl.run(recipe, run)
        return [line["reward"] for line in run.metrics("rl")]


def assert_rising(found: list[float], by: float) -> None:
    assert fmean(found[-3:]) >= fmean(found[:3]) + by, found


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 60


def test_own_reward_rises(tiny: Tiny, tmp_path: Path) -> None:
    assert_rising(rewards(tiny, tmp_path, {"environment.reward": f"{EXAMPLES}/own_reward.py:reward"}), 0.15)


@pytest.mark.parametrize("name", ["TurnCredit", "reinforce"])
def test_own_algorithm_raises_the_reward(name: str, tiny: Tiny, tmp_path: Path) -> None:
    assert_rising(rewards(tiny, tmp_path, {"rl.algorithm": f"{EXAMPLES}/own_algorithm.py:{name}"}), 0.15)


def test_own_data_are_problems() -> None:
    settings = Problems(train=f"{EXAMPLES}/own_data.py:train", evaluate=f"{EXAMPLES}/own_data.py:held_out")
    train, held_out = training_problems(settings, 50, seed=1), evaluation_problems(settings, 20)
    assert (len(train), len(held_out)) == (50, 20)
    assert not {problem.id for problem in train} & {problem.id for problem in held_out}
    first = train[0]
    a, b = first.id.removeprefix("product-").split("-")
    assert first.answer == str(int(a) * int(b))


def attempt(environment: Environment, problem: Problem, turns: list[tuple[str, list[ParsedCall]]]) -> Trajectory:
    """One attempt of scripted turns with the real tools: (text, calls)."""
    dialect = DIALECT.with_tools(environment.schemas)
    sampler = ScriptedFakeSampler([dialect.turn_ids("so", text, calls) for text, calls in turns])

    async def main() -> Trajectory:
        async with environment:
            return await rollout(
                problem,
                0,
                5,
                sequence="s",
                sampler=sampler,
                dialect=dialect,
                environment=environment,
                budget=WIDE,
                decoding=Decoding(),
            )

    return asyncio.run(main())


def test_own_tool_works_beside_python() -> None:
    tools = [ToolSection(use="python"), ToolSection(use=f"{EXAMPLES}/own_tool.py:search")]
    environment = make_environment(EnvironmentSection(), tools, Sandbox(preload=[]))
    heights = [ParsedCall("", tool="search", arguments={"query": name}) for name in ("Mont Blanc", "Ben Nevis")]
    made = attempt(
        environment,
        Problem("m", "How much higher is Mont Blanc than Ben Nevis, in metres?", "3461"),
        [
            ("", heights),
            ("", [ParsedCall("", tool="search", arguments={"query": "the"})]),
            ("", [ParsedCall("4806 - 1345")]),
            ("\\boxed{3461}", []),
        ],
    )
    assert (made.stop_reason, made.reward) == (StopReason.ANSWERED, 1.0)
    first, second, nothing, python = made.calls
    assert "4806 metres" in first.output
    assert "1345 metres" in second.output
    assert (nothing.status, nothing.tool) == ("error", "search")
    assert (python.output, python.tool) == ("3461", "")


@pytest.mark.parametrize(
    ("query", "reward"),
    [
        ("select count(id) from customers where city like 'Lon%'", 1.0),
        ("select count(*) from customers", 0.0),
        ("drop everything", 0.0),
    ],
)
def test_own_environment_runs_the_answer(query: str, reward: float) -> None:
    environment = make_environment(
        EnvironmentSection(use=f"{EXAMPLES}/own_environment.py:Sql"), [ToolSection()], Sandbox(preload=[])
    )
    (problem, _) = training_problems(Problems(train=f"{EXAMPLES}/own_environment.py:problems"), 2, seed=1)
    look = "import sqlite3\nsqlite3.connect('shop.db').execute('select count(*) from orders').fetchall()"
    made = attempt(environment, problem, [("", [ParsedCall(look)]), (f"\\boxed{{{query}}}", [])])
    assert made.calls[0].output == "[(4,)]"
    assert (made.reward, made.answer) == (reward, query)


def test_a_recipe_names_them_in_one_line_each() -> None:
    recipe = Recipe.model_validate(
        {
            "environment": {"reward": "examples/own_reward.py:reward"},
            "tools": ["python", "examples/own_tool.py:search"],
            "rl": {"algorithm": "examples/own_algorithm.py:TurnCredit"},
        }
    )
    assert recipe.rl.algorithm.use.endswith(":TurnCredit")
    assert [tool.use for tool in recipe.tools] == ["python", "examples/own_tool.py:search"]


def test_own_engine_writes_down_every_turn(tiny: Tiny, tmp_path: Path) -> None:
    changes = {
        "policy": {"kind": f"{EXAMPLES}/own_engine.py:open_logged", "arguments": {"file": str(tmp_path / "turns.jsonl")}},
        "cold_start": "zero",
        "rl.stages": [{"steps": 1, "limits": LIMITS}],
    }
    recipe = tiny.recipe(changes)
    with RunFolder.open(tmp_path / "run", recipe, []) as run:
        rl.run(recipe, run)
        (line,) = run.metrics("rl")
    written = [json.loads(text) for text in (tmp_path / "turns.jsonl").read_text().splitlines()]
    assert sum(each["sampled"] for each in written) == line["sampled_tokens"]
