"""The settings of an evaluation: everything that affects its results. Evaluations with the same settings can be merged."""

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
"""The meaning of ``k`` in a budget: 30k is 30,720."""


class Settings(Section):
    """The settings of an evaluation. The defaults are the paper's."""

    policy: str
    """The policy as it was given: a model's path, or ``http://``, ``chat:http://``, ``tinker:http://``."""
    model_name: str = ""
    """The model's name on the server."""
    tokenizer: str = ""
    """The tokenizer's folder, for a server that takes token ids."""
    checkpoint: str = ""
    """A run's checkpoint of the policy, if it is not the policy itself. In a run's own evaluations it is a path from the run
    folder, so that the run can be moved."""
    benchmark: str
    """A benchmark's name, a file, ``lab``, or the value of a recipe's ``problems.evaluate``."""
    problems: Positive
    """How many problems are asked."""
    checksum: str
    """The checksum of these problems (:func:`aster.data.benchmarks.checksum`)."""
    prompt_suffix: str = f"\n{BOX_REQUEST}"
    """Text after each problem."""
    k: Positive = 16
    """Samples per problem."""
    temperature: Annotated[float, Field(ge=0.0)] = 0.6
    """Temperature of the sampling. 0: greedy."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Sample from the smallest set of tokens whose probabilities sum to at least this."""
    context_tokens: Positive = 30 * THOUSAND
    """Most tokens of an attempt: prompt, sampled and tool tokens together."""
    turn_tokens: Annotated[int, Field(ge=0)] = 0
    """Most tokens of one turn. 0: as many as the budget leaves."""
    tool_calls: Annotated[int, Field(ge=0)] = 256
    """Most tool calls of an attempt."""
    turns: Annotated[int, Field(ge=0)] = 0
    """Most assistant turns of an attempt. 0: one more than the calls, which is never reached."""
    wall_seconds: PositiveFloat = 3600.0
    """Most seconds of an attempt, checked between turns."""
    tools: bool = True
    """Whether the policy is offered tools."""
    environment: Environment = Environment()
    """How problems are posed and attempts rewarded."""
    toolset: list[Tool] = [Tool()]  # noqa: RUF012 - pydantic copies defaults
    """The tools that the policy may call, if it is offered tools."""
    demand: ForceTool = ForceTool(system="")
    """The texts in every prompt that demand the tool, for the cold start ``zero_force_tool``."""
    seed: int = 1
    """The seed of the attempts and of the intervals."""
    shard: str = "1/1"
    """Which part of the problems to ask: part i of n, ``i/n``."""
    model: Model = Model()
    """Only for a local policy: number format, device, threads. ``path`` is the policy."""
    engine: Policy = Policy()
    """The engine of a local policy. For others, it follows from the policy."""
    sandbox: Sandbox = Sandbox()
    """The sandbox in which the Python tool runs."""

    @property
    def kind(self) -> Kind:
        """Which kind of policy answers."""
        return policy_kind(self.policy)[0]

    @property
    def offered_tools(self) -> list[Tool]:
        """The tools that the policy may call; none without tools."""
        return self.toolset if self.tools else []

    @property
    def decoding(self) -> Decoding:
        """How turns are sampled."""
        return Decoding(self.temperature, self.top_p)

    def budget(self) -> Budget:
        """What an attempt may spend. Without ``turns``, turns are not limited separately: every turn except the last makes a
        call, so the limit of one more turn than calls is never reached, and calls can be cut afterwards."""
        turn = self.turn_tokens or self.context_tokens
        return Budget(self.context_tokens, turn, self.tool_calls, self.turns or self.tool_calls + 1, self.wall_seconds)

    def engine_config(self, rollout: Rollout) -> EngineConfig:
        """The settings for opening the policy. Raises UserError where something is missing. Not for a chat endpoint."""
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
        """The settings that affect the results, without those that may change when the evaluation is resumed."""
        return deciding(self)


def policy_kind(policy: str) -> tuple[Kind, str]:
    """The kind of a policy, and its path or address. Raises UserError for a wrong address."""
    for prefix, kind in (("chat:", "chat"), ("tinker:", "tinker")):
        if policy.startswith(prefix):
            address = policy.removeprefix(prefix)
            if not re.match(r"https?://", address):
                raise UserError(f"--policy {policy}: write {prefix}http://HOST:PORT")
            return kind, address  # type: ignore[return-value]  # one of the two
    return ("endpoint", policy) if re.match(r"https?://", policy) else ("local", policy)


def parse_tokens(text: str) -> int:
    """``30720``, ``30k`` or ``30K`` as a number of tokens; k is 1,024. Raises UserError for other text."""
    match = re.fullmatch(r"([0-9]{1,9})([kK]?)", text.strip())
    if not match or not int(match[1]):
        raise UserError(f"{text}: not a number of tokens; write for instance 30720 or 30k (k is {THOUSAND:,})")
    return int(match[1]) * (THOUSAND if match[2] else 1)


def parse_shard(text: str) -> tuple[int, int]:
    """``i/n`` with i from 1 to n. Raises UserError for other text."""
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard {text}: write i/n, with i from 1 to n, for instance 1/4")
    return int(match[1]), int(match[2])
