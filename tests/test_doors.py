"""The doors for a user's code: what is found, and how its errors are reported."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from aster import rl
from aster.algorithms import Grpo, make_algorithm
from aster.chat import ParsedCall
from aster.config import EngineConfig, Model, Policy, Sandbox
from aster.config import Environment as EnvironmentSection
from aster.config import Tool as ToolSection
from aster.doors import load
from aster.engines.opening import open_engine
from aster.environments.opening import make_environment
from aster.environments.tools import Toolbox
from aster.errors import UserError
from aster.rollout import Decoding, rollout
from aster.run import RunFolder
from aster.types import FAULTS, CallStatus, Problem, StopReason, ToolCall, Trajectory
from tests.rollout.scripted import DIALECT, WIDE, ScriptedFakeSampler, turn
from tests.shop_fixture import Shop

CLIPS = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 10.0, "importance_cap": 2.0, "normalize_std": True}
PROBLEM = Problem("p", "What is 2+2?", "4")


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's file in the current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine.py"


@pytest.mark.parametrize(
    ("code", "name", "said"),
    [
        ("", "mine.py:reward", ["mine.py", "reward"]),
        ("x = 1\ny = x +\n", "mine.py:reward", ["mine.py", "line 2"]),
        ("import no_such_module\n", "mine.py:reward", ["mine.py, line 1", "no_such_module"]),
        ("x = {}\nx['a']\n", "mine.py:reward", ["mine.py, line 2", "KeyError"]),
        ("", "none.py:reward", ["none.py"]),
        ("", "no_such_module:reward", ["no_such_module"]),
        ("", "nothing", ["nothing", "module:name"]),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_its_field_file_and_line(
    code: str, name: str, said: list[str], mine: Path
) -> None:
    mine.write_text(code)
    with pytest.raises(UserError) as refused:
        load(name, {}, "environment.reward")
    message = str(refused.value)
    assert message.startswith("environment.reward: ")
    assert "\n" not in message
    for part in said:
        assert part in message


def test_a_module_in_the_current_folder_is_found(mine: Path) -> None:
    mine.with_name("my_own_module.py").write_text("def reward(attempt):\n    return 1.0\n")
    assert load("my_own_module:reward", {}, "environment.reward")(None) == 1.0


def attempt(
    shop: Shop, section: EnvironmentSection, turns: list[list[int]], tools: list[ToolSection] | None = None
) -> Trajectory:
    environment = make_environment(section, tools or [], Sandbox(preload=[]))
    return shop.run(
        rollout(
            PROBLEM,
            0,
            5,
            sequence="s",
            sampler=ScriptedFakeSampler([*turns]),
            dialect=DIALECT.with_tools(environment.schemas),
            environment=environment,
            budget=WIDE,
            decoding=Decoding(),
        )
    )


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("    return {}['a']\n", ["mine.py, line 2, in reward", "KeyError", "a number, or a Score"]),
        ("    return float('nan')\n", ["mine.py, line 1, in reward", "nan"]),
        ("    return 'good'\n", ["mine.py, line 1, in reward", "'good'", "a number, or a Score"]),
        ("    from aster.environments import Score\n    return Score(1.0, turns=[1.0, 2.0, 3.0])\n", ["mine.py", "3 rewards"]),
    ],
)
def test_a_reward_that_fails_is_a_recorded_fault_and_no_zero(body: str, said: list[str], mine: Path, shop: Shop) -> None:
    mine.write_text(f"def reward(attempt):\n{body}")
    made = attempt(shop, EnvironmentSection(reward="mine.py:reward"), [turn("so", "\\boxed{4}")])
    assert made.stop_reason is StopReason.ENVIRONMENT_ERROR
    assert made.stop_reason in FAULTS
    for part in said:
        assert part in made.error


def test_an_async_reward_and_rewards_for_turns(mine: Path, shop: Shop) -> None:
    mine.write_text(
        "import asyncio\nfrom aster.environments import Score\n\n\nasync def reward(attempt):\n    await asyncio.sleep(0)\n"
        "    return Score(0.5, 'half', attempt.final, [0.25 for _ in attempt.steps])\n"
    )
    made = attempt(shop, EnvironmentSection(reward="mine.py:reward"), [turn("so", "four")])
    assert (made.reward, made.verdict, made.answer, made.turn_rewards) == (0.5, "half", "four", [0.25])


def test_an_environment_that_gives_no_messages_is_refused(mine: Path, shop: Shop) -> None:
    mine.write_text(
        "from aster.environments import Environment\n\n\nclass Mine(Environment):\n    def prompt(self, problem):\n"
        "        return problem.prompt\n"
    )
    with pytest.raises(UserError, match=r"^environment: .*mine\.py"):
        attempt(shop, EnvironmentSection(use="mine.py:Mine"), [])


@pytest.mark.parametrize(
    ("section", "field"),
    [
        (EnvironmentSection(use="mine.py:double"), "environment.use"),
        (EnvironmentSection(reward="mine.py:NUMBER"), "environment.reward"),
        (EnvironmentSection(arguments={"none": 1}), "environment"),
    ],
)
def test_things_that_are_no_environment_are_refused(section: EnvironmentSection, field: str, mine: Path) -> None:
    mine.write_text("NUMBER = 3\n\n\ndef double(x):\n    return 2 * x\n")
    with pytest.raises(UserError) as refused:
        make_environment(section, [], Sandbox())
    assert str(refused.value).startswith(f"{field}: ")


TOOLS = """
from aster.environments import Tool, ToolError, ToolResult


def add(a: int, b: int = 1) -> str:
    \"\"\"Add two numbers.\"\"\"
    if b < 0:
        raise ToolError("b must not be below 0")
    return str(a + b)


def broken(text: str) -> str:
    return text["a"]


def untyped(text):
    return text


class Counter(Tool):
    \"\"\"Counts its calls during an attempt.\"\"\"

    def __init__(self, start: int = 0):
        from aster.environments.tools import schema_of

        def count() -> str:
            \"\"\"How often it was called.\"\"\"

        self.schema, self.start = schema_of(count), start

    async def open(self, problem, seed):
        return Session(self.start)


class Session:
    def __init__(self, start):
        self.count = start

    async def call(self, arguments):
        self.count += 1
        return ToolResult(str(self.count))

    async def close(self):
        pass
"""


def calls(tools: list[ToolSection], *asked: ParsedCall) -> list[ToolCall]:
    environment = make_environment(EnvironmentSection(), tools, Sandbox(preload=[]))

    async def main() -> list[ToolCall]:
        async with environment:
            toolbox = Toolbox(environment.tools, PROBLEM, 1)
            found = [await toolbox.run(call) for call in asked]
            await toolbox.close()
            return found

    return asyncio.run(main())


def test_a_function_is_a_tool_and_its_signature_is_the_schema(mine: Path) -> None:
    mine.write_text(TOOLS)
    environment = make_environment(EnvironmentSection(), [ToolSection(use="mine.py:add")], Sandbox())
    (function,) = environment.schemas.functions
    assert function["function"]["name"] == "add"
    assert function["function"]["description"] == "Add two numbers."
    assert function["function"]["parameters"]["required"] == ["a"]
    good, refused = calls(
        [ToolSection(use="mine.py:add")],
        ParsedCall("", tool="add", arguments={"a": 2, "b": 3}),
        ParsedCall("", tool="add", arguments={"a": 2, "b": -3}),
    )
    assert (good.output, good.status, good.tool) == ("5", CallStatus.OK, "add")
    assert (refused.output, refused.status) == ("Error: b must not be below 0", CallStatus.ERROR)


@pytest.mark.parametrize("arguments", [{}, {"a": "2"}, {"a": True}, {"a": 1, "c": 1}])
def test_arguments_that_do_not_fit_the_schema_are_the_models_mistake(arguments: dict[str, Any], mine: Path) -> None:
    mine.write_text(TOOLS)
    schemas = make_environment(EnvironmentSection(), [ToolSection(use="mine.py:add")], Sandbox()).schemas
    assert schemas.read("add", arguments).error
    assert not schemas.read("add", {"a": 1}).error


def test_a_tool_keeps_its_state_during_an_attempt(mine: Path) -> None:
    mine.write_text(TOOLS)
    section = ToolSection(use="mine.py:Counter", arguments={"start": 5})
    again = ParsedCall("", tool="count", arguments={})
    assert [call.output for call in calls([section], again, again)] == ["6", "7"]


def test_a_tools_own_error_is_a_recorded_fault_with_its_line(mine: Path, shop: Shop) -> None:
    mine.write_text(TOOLS)
    tools = [ToolSection(use="mine.py:broken")]
    environment = make_environment(EnvironmentSection(), tools, Sandbox())
    dialect = DIALECT.with_tools(environment.schemas)
    made = attempt(shop, EnvironmentSection(), [dialect.turn_ids("", "", ["x"])], tools)
    assert made.stop_reason is StopReason.ENVIRONMENT_ERROR
    assert "mine.py, line 13, in broken" in made.error


@pytest.mark.parametrize(
    "tools",
    [
        [ToolSection(use="mine.py:untyped")],
        [ToolSection(use="mine.py:add", arguments={"a": 1})],
        [ToolSection(use="python", arguments={"a": 1})],
        [ToolSection(use="mine.py:add", argument="text")],
        [ToolSection(), ToolSection()],
        [ToolSection(aliases=["add"]), ToolSection(use="mine.py:add")],
    ],
)
def test_tools_that_cannot_be_are_refused(tools: list[ToolSection], mine: Path) -> None:
    mine.write_text(TOOLS)
    with pytest.raises(UserError, match=r"^tools"):
        make_environment(EnvironmentSection(), tools, Sandbox())


def test_the_python_tool_goes_by_the_name_that_a_model_knows() -> None:
    """Many published models call it code_interpreter; what they were trained with before is accepted too."""
    section = ToolSection(name="code_interpreter", argument="script", description="Runs Python.", aliases=["python"])
    environment = make_environment(EnvironmentSection(), [section], Sandbox(preload=[]))
    dialect = DIALECT.with_tools(environment.schemas)
    prompt = dialect.decode(dialect.prompt_ids("What is 6*7?"))
    assert '"name": "code_interpreter"' in prompt
    assert '"script"' in prompt
    assert "Runs Python." in prompt
    written = dialect.decode(dialect.turn_ids("", "", ["6*7"]))
    assert '{"name": "code_interpreter", "arguments": {"script": "6*7"}}' in written
    for name in ("code_interpreter", "python"):
        text = f'\n</think>\n\n<tool_call>\n{{"name": "{name}", "arguments": {{"script": "6*7"}}}}\n</tool_call><|im_end|>'
        (call,) = dialect.parse(dialect._encode(text)).calls
        assert (call.code, call.error) == ("6*7", "")
    made = calls([section], ParsedCall("6*7"))
    assert made[0].output == "42"


def test_a_system_prompt_stands_before_the_tools(shop: Shop) -> None:
    section = EnvironmentSection(system="Work in small steps.")
    made = attempt(shop, section, [turn("so", "\\boxed{4}")], [ToolSection()])
    prompt = DIALECT.decode(made.token_ids[: made.turns[0].end])
    assert prompt.startswith("<|im_start|>system\nWork in small steps.\n\n# Tools")


@pytest.mark.parametrize(
    ("use", "arguments", "changed", "field"),
    [
        ("nothing", {}, {}, "rl.algorithm.use"),
        ("gspo", {"none": 1}, {}, "rl.algorithm"),
        ("gspo", {}, {"clip_low": 0.3}, "rl.clip_low"),
        ("mine.py:Empty", {}, {}, "rl.algorithm.use"),
    ],
)
def test_things_that_are_no_algorithm_are_refused(
    use: str, arguments: dict[str, Any], changed: dict[str, Any], field: str, mine: Path
) -> None:
    mine.write_text("class Empty:\n    pass\n")
    with pytest.raises(UserError) as refused:
        make_algorithm(use, arguments, {**CLIPS, **changed}, CLIPS)
    assert str(refused.value).startswith(f"{field}: ")


def test_an_algorithm_takes_its_own_settings_and_the_recipes(mine: Path) -> None:
    found = make_algorithm("cispo", {"clip_high": 3.0}, {**CLIPS, "importance_cap": 5.0}, CLIPS)
    assert dict(found.loss.settings) == {"clip_low": 1.0, "clip_high": 3.0, "importance_cap": 5.0}
    mine.write_text("def my_loss(tokens, scale=1.0):\n    return scale * tokens.logprobs.sum(), {'tokens': 1.0}\n")
    mine_too = make_algorithm("mine.py:my_loss", {"scale": 2.0}, CLIPS, CLIPS)
    assert isinstance(mine_too, Grpo)
    assert (mine_too.loss.name, dict(mine_too.loss.settings)) == ("my_loss", {"scale": 2.0})


ENGINE = """
from aster.config import EngineConfig
from aster.engines.local.engine import LocalEngine


async def open_mine(config, checkpoint, *, optimizer, capacity, overlapped, mark):
    engine = LocalEngine(config, checkpoint, optimizer=optimizer, capacity=capacity)
    engine.mark = mark
    return engine


async def open_nothing(config, checkpoint, **how):
    return object()


async def open_broken(config, checkpoint, **how):
    raise KeyError("no")
"""


def test_an_engine_of_the_users(mine: Path, lab_folder: Path) -> None:
    mine.write_text(ENGINE)
    model = Model(path=str(lab_folder), threads=1)

    async def opened(policy: Policy) -> Any:
        async with open_engine(EngineConfig(model=model, policy=policy), capacity=64) as engine:
            return engine

    engine = asyncio.run(opened(Policy(kind="mine.py:open_mine", arguments={"mark": 7})))
    assert engine.mark == 7
    for name, said in (("open_nothing", "without"), ("open_broken", "line 17"), ("open_mine", "mark")):
        with pytest.raises(UserError, match=rf"^policy\.kind: mine\.py.*{said}"):
            asyncio.run(opened(Policy(kind=f"mine.py:{name}")))


def test_a_loss_that_fails_names_its_line(mine: Path, tmp_path: Path) -> None:
    """RL with it ends with one line."""
    from aster.config.file import validate_recipe

    mine.write_text("def my_loss(tokens):\n    return tokens.nothing, {}\n")
    limits = {"context_tokens": 400, "turn_tokens": 64, "tool_calls": 2, "turns": 3}
    recipe = validate_recipe(
        {
            "cold_start": "zero",
            "model": {"threads": 1},
            "sandbox": {"preload": []},
            "environment": {"reward": "mine.py:any_reward"},
            "rl": {"algorithm": "mine.py:my_loss", "prompts": 2, "samples": 4, "stages": [{"steps": 1, "limits": limits}]},
        },
        "test",
    )
    with mine.open("a") as stream:
        stream.write(
            "\n\ndef any_reward(attempt):\n    any_reward.n = getattr(any_reward, 'n', 0) + 1\n    return any_reward.n % 2\n"
        )
    with (
        RunFolder.open(tmp_path / "run", recipe, []) as run,
        pytest.raises(UserError, match=r"^rl\.algorithm: mine\.py, line 2"),
    ):
        rl.run(recipe, run)
