"""The types that the whole package shares: Problem, Budget, StopReason, ToolCall, Turn, Trajectory. No torch here.

Shape legend used across the package:

    T  tokens of one trajectory (prompt, sampled and tool tokens together)
    N  trained tokens of a batch or micro-batch
    P  packed tokens: all that one forward pass is fed, many sequences side by side, without padding
    B  sequences of one batch          K  samples per problem (the group of GRPO)
    L  length of one sequence, or of the longest of a batch
    Q  tokens of one sequence that are fed now, the last of its L
    V  vocabulary                      E  hidden size
    H  attention heads (of queries)    KV heads of keys and values
    D  head size                       I  intermediate size of the feed-forward layers
    S  slots of a key-value cache      C  its capacity: positions of each slot
    R  rank of a LoRA adapter

A trajectory is the flat list ``token_ids``; all text is decoded from spans of it, and never encoded again.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aster_sandbox import CellResult


class StopReason(enum.StrEnum):
    """Why a trajectory ended. Every trajectory ends with exactly one of these."""

    ANSWERED = "answered"
    """The assistant ended a turn without calling a tool."""
    TOKEN_BUDGET = "token_budget"
    """The context is full, or a turn reached its limit of tokens."""
    CALL_BUDGET = "call_budget"
    """The assistant called a tool after the budget of calls was used up."""
    TURN_BUDGET = "turn_budget"
    """The assistant took as many turns as the budget allows, and did not answer."""
    TIME_BUDGET = "time_budget"
    """The time for the trajectory is over."""
    ENGINE_ERROR = "engine_error"
    """The policy's engine failed; ``Trajectory.error`` says how."""
    SANDBOX_ERROR = "sandbox_error"
    """The sandbox itself failed (not the code in it); ``Trajectory.error`` says how."""
    ENVIRONMENT_ERROR = "environment_error"
    """The code of a tool or of the reward failed; ``Trajectory.error`` says where."""


FAULTS = frozenset({StopReason.ENGINE_ERROR, StopReason.SANDBOX_ERROR, StopReason.ENVIRONMENT_ERROR})
"""The reasons that say nothing about the policy."""


class CallStatus(enum.StrEnum):
    """How one tool call ended."""

    OK = "ok"
    ERROR = "error"
    """The code raised an exception."""
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    """The interpreter died while it ran the code."""
    MALFORMED = "malformed"
    """The call could not be parsed; no code ran."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with a known answer."""

    id: str
    prompt: str
    answer: str
    source: str = ""
    setup: str = ""
    """Python that runs in the session before the first cell (the lab's *hunt* defines its oracle here). The model never sees
    it."""
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Budget:
    """What one trajectory may spend."""

    context_tokens: int
    """Prompt, sampled and tool tokens together."""
    turn_tokens: int
    """Tokens sampled in one assistant turn."""
    tool_calls: int
    """Tool calls of the trajectory (paper: 50 in RL, up to 256 in evaluation)."""
    turns: int
    """Assistant turns of the trajectory."""
    wall_seconds: float
    """Seconds from the first sampling to the end; checked between turns."""

    def before_turn(self, room: int, turns: int, seconds: float) -> StopReason | None:
        """Why no further turn may begin, or None. Every loop makes these checks here, so their order is the same.

        ``room``: tokens left in the context. ``turns``: turns taken. ``seconds``: since the first turn began.
        """
        if room <= 0:
            return StopReason.TOKEN_BUDGET
        if turns >= self.turns:
            return StopReason.TURN_BUDGET
        if seconds > self.wall_seconds:
            return StopReason.TIME_BUDGET
        return None


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """One trajectory to train on. The lists have length T."""

    token_ids: list[int]
    loss_mask: list[int]
    """1 = trained."""
    weights: float | list[float]
    """SFT weight or advantage of the trained tokens, divided by the trained tokens of the global batch: one number for all of
    them, or T numbers."""
    sampler_logprobs: list[float] | None = None
    """Log-probabilities under the sampler, at every position (0.0 where not sampled). None: no correction for the sampler."""
    old_logprobs: list[float] | None = None
    """Log-probabilities under the trainer before the batch's first step, at the trained positions only, in order. None: those
    of the current weights."""

    @property
    def trained_positions(self) -> list[int]:
        """Positions whose token is trained. The first token has nothing before it and is never trained."""
        return [index for index, flag in enumerate(self.loss_mask) if flag and index > 0]

    @property
    def trained_weights(self) -> list[float]:
        """The weight of each trained token, in order."""
        positions = self.trained_positions
        if isinstance(self.weights, float | int):
            return [self.weights] * len(positions)
        return [self.weights[position] for position in positions]


@dataclass(slots=True)
class ToolCall:
    """One tool call and its result."""

    code: str
    """The text of the tool's only argument: for the Python tool, its code. Empty for tools with other arguments."""
    status: CallStatus
    output: str
    """The text the policy saw."""
    seconds: float
    tool: str = ""
    """The tool's name. Empty: the Python tool, or the only one."""
    arguments: dict[str, Any] | None = None
    """Of a tool whose arguments are not one text; else None."""

    @classmethod
    def of_cell(cls, cell: CellResult) -> ToolCall:
        """The call that a cell of the sandbox was."""
        return cls(cell.code, CallStatus(cell.status.value), cell.output, cell.seconds)


@dataclass(slots=True)
class Turn:
    """A span ``token_ids[start:end]`` of a trajectory."""

    role: str
    """``prompt``, ``assistant`` (sampled) or ``tool`` (written by the template)."""
    start: int
    end: int
    calls: list[ToolCall] = field(default_factory=list)
    """For an assistant turn: the calls it made, with their results."""


@dataclass(slots=True)
class Trajectory:
    """One attempt at one problem. ``token_ids``, ``loss_mask`` and ``logprobs`` all have length T."""

    problem_id: str
    sample: int
    """Which of the K attempts at the problem this is."""
    seed: int
    token_ids: list[int] = field(default_factory=list)
    loss_mask: list[int] = field(default_factory=list)
    """1 where the policy sampled the token, else 0."""
    logprobs: list[float] = field(default_factory=list)
    """Log-probability under the sampler, untempered (temperature 1, no top-p); 0.0 where ``loss_mask`` is 0."""
    turns: list[Turn] = field(default_factory=list)
    stop_reason: StopReason | None = None
    answer: str | None = None
    """The final answer that the policy gave, or None."""
    reward: float = 0.0
    verdict: str = ""
    """How the reward came about, in words."""
    error: str = ""
    """For ``engine_error``, ``sandbox_error`` and ``environment_error``: what happened."""
    seconds: float = 0.0
    turn_rewards: list[float] | None = None
    """A reward for each assistant turn, where the environment gives them."""

    def append(self, role: str, token_ids: list[int], logprobs: list[float] | None = None) -> Turn:
        """Append a turn. ``logprobs`` (same length) are given for sampled tokens only, and set their mask to 1."""
        if logprobs is not None and len(logprobs) != len(token_ids):
            raise ValueError(f"{len(token_ids)} tokens but {len(logprobs)} logprobs")
        turn = Turn(role, len(self.token_ids), len(self.token_ids) + len(token_ids))
        self.token_ids += token_ids
        self.loss_mask += [0 if logprobs is None else 1] * len(token_ids)
        self.logprobs += [0.0] * len(token_ids) if logprobs is None else logprobs
        self.turns.append(turn)
        return turn

    @property
    def calls(self) -> list[ToolCall]:
        """All tool calls in order, malformed ones too."""
        return [call for turn in self.turns for call in turn.calls]

    @property
    def tool_calls(self) -> int:
        """Interaction density: the number of tool calls whose code ran. That of malformed ones did not."""
        return sum(call.status is not CallStatus.MALFORMED for call in self.calls)

    @property
    def sampled_tokens(self) -> int:
        """The number of tokens that the policy sampled."""
        return sum(self.loss_mask)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; log-probabilities keep six decimals."""
        # Not asdict of the whole trajectory: it copies token by token, which takes longer than writing the JSON.
        record = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        record["turns"] = [dataclasses.asdict(turn) for turn in self.turns]
        record["logprobs"] = [round(value, 6) for value in self.logprobs]
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Trajectory:
        """The inverse of :meth:`to_json`. KeyError, TypeError or ValueError where a field is missing, unknown or has no such
        value."""
        turns = [
            Turn(**{**turn, "calls": [ToolCall(**{**c, "status": CallStatus(c["status"])}) for c in turn["calls"]]})
            for turn in record["turns"]
        ]
        reason = record["stop_reason"]
        return cls(**{**record, "turns": turns, "stop_reason": StopReason(reason) if reason else None})
