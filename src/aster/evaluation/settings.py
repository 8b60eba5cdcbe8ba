"""What an evaluation is: everything that decides its numbers. Two evaluations with the same settings can be joined."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from aster.config import EngineConfig, Environment, ForceTool, Model, Policy, Rollout, Sandbox, Section, Tool
from aster.config.changes import deciding
from aster.config.section import Positive, PositiveFloat
from aster.data.problems import BOX_REQUEST
from aster.errors import UserError
from aster.rollout import Decoding
from aster.types import Budget

Kind = Literal["local", "tinker", "endpoint", "chat"]
THOUSAND = 1024
"""What ``k`` stands for in a budget: contexts are counted so (30k = 30,720)."""


class Settings(Section):
    """The settings. The paper's preset is the default."""

    policy: str
    """As it was given: a model's path, or ``http://``, ``chat:http://``, ``tinker:http://``."""
    model_name: str = ""
    """The name under which a server serves it."""
    tokenizer: str = ""
    """Where the tokenizer is, for a server that takes token ids."""
    checkpoint: str = ""
    """A run's checkpoint of the policy, where it is not the policy itself."""
    benchmark: str
    """A name, a file, ``lab``, or what ``problems.evaluate`` of a recipe says."""
    problems: Positive
    """How many of its problems."""
    checksum: str
    """Of these problems: :func:`aster.data.benchmarks.checksum`."""
    prompt_suffix: str = f"\n{BOX_REQUEST}"
    """What is asked for after each problem."""
    k: Positive = 16
    """Samples a problem."""
    temperature: Annotated[float, Field(ge=0.0)] = 0.6
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Sample from the smallest set of tokens with so much probability."""
    context_tokens: Positive = 30 * THOUSAND
    """Budget: prompt, sampled and tool tokens together."""
    turn_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens of one turn; 0: as many as the budget leaves."""
    tool_calls: Annotated[int, Field(ge=0)] = 256
    """Budget of calls."""
    turns: Annotated[int, Field(ge=0)] = 0
    """Budget of assistant turns; 0: one more than calls, which is never reached."""
    wall_seconds: PositiveFloat = 3600.0
    """Seconds of one attempt, checked between turns."""
    tools: bool = True
    """False: no tool is offered."""
    environment: Environment = Environment()
    """What an attempt is worth."""
    toolset: list[Tool] = [Tool()]  # noqa: RUF012 - pydantic copies defaults
    """What the policy may call, where it has tools."""
    demand: ForceTool = ForceTool(system="")
    """Texts in every prompt that demand the tool: of the cold start ``zero_force_tool``."""
    seed: int = 1
    """Of the attempts and of the intervals."""
    shard: str = "1/1"
    """Which part of the problems, ``i/n``."""
    model: Model = Model()
    """Of a local policy: types, device, threads. ``path`` is filled in."""
    engine: Policy = Policy()
    """Of a local policy: the engine. Of others it follows from the policy."""
    sandbox: Sandbox = Sandbox()
    """Where the Python tool runs."""

    @property
    def kind(self) -> Kind:
        """Who answers."""
        return policy_kind(self.policy)[0]

    @property
    def offered_tools(self) -> list[Tool]:
        """What the policy may call."""
        return self.toolset if self.tools else []

    @property
    def decoding(self) -> Decoding:
        """How turns are sampled."""
        return Decoding(self.temperature, self.top_p)

    def budget(self) -> Budget:
        """What an attempt may spend. Without ``turns`` these are no limit of their own: a turn that goes on has made a call, so
        one turn more than calls is never reached, and the number of calls can be cut afterwards."""
        turn = self.turn_tokens or self.context_tokens
        return Budget(self.context_tokens, turn, self.tool_calls, self.turns or self.tool_calls + 1, self.wall_seconds)

    def engine_config(self, rollout: Rollout) -> EngineConfig:
        """What opens the policy. UserError where something is missing. A chat endpoint is not opened by it."""
        kind, address = policy_kind(self.policy)
        if kind == "local":
            return EngineConfig(seed=self.seed, model=self.model, policy=self.engine, rollout=rollout)
        if not self.tokenizer:
            raise UserError(
                f"--policy {self.policy}: it takes token ids, so the model's tokenizer is needed: --tokenizer FOLDER (or "
                "chat:http://... for an endpoint that takes text)"
            )
        engine = {"base_url": address, "model_name": self.model_name} | (
            {"kind": "tinker"} if kind == "tinker" else {"sampler": "endpoint"}
        )
        if kind == "tinker":
            engine["base_model"] = engine.pop("model_name")
        model = self.model.model_copy(update={"path": self.tokenizer})
        try:
            policy = Policy(**{**self.engine.model_dump(exclude_defaults=True), **engine})
        except ValidationError as error:
            raise UserError(f"--policy {self.policy}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
        return EngineConfig(seed=self.seed, model=model, policy=policy, rollout=rollout)

    def identity(self) -> dict[str, Any]:
        """All that decides the numbers, without what may change from call to call."""
        return deciding(self)


def policy_kind(policy: str) -> tuple[Kind, str]:
    """Who answers, and the path or address."""
    for prefix, kind in (("chat:", "chat"), ("tinker:", "tinker")):
        if policy.startswith(prefix):
            address = policy.removeprefix(prefix)
            if not re.match(r"https?://", address):
                raise UserError(f"--policy {policy}: write {prefix}http://HOST:PORT")
            return kind, address  # type: ignore[return-value]  # one of the two
    return ("endpoint", policy) if re.match(r"https?://", policy) else ("local", policy)


def parse_tokens(text: str) -> int:
    """``30720``, ``30k`` or ``30K`` as a number of tokens; k is 1,024. UserError where it is none."""
    match = re.fullmatch(r"([0-9]{1,9})([kK]?)", text.strip())
    if not match or not int(match[1]):
        raise UserError(f"{text}: not a number of tokens; write for instance 30720 or 30k (k is {THOUSAND:,})")
    return int(match[1]) * (THOUSAND if match[2] else 1)


def parse_shard(text: str) -> tuple[int, int]:
    """``i/n`` with i from 1 to n. UserError where it is none."""
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard {text}: write i/n, with i from 1 to n, for instance 1/4")
    return int(match[1]), int(match[2])
