"""The sections for evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from aster.config.data import Limits
from aster.config.section import Positive, Section


class EvaluateLimits(Limits):
    """The limits in evaluation. Their defaults are higher than in training, also where a recipe sets only some of them."""

    context_tokens: Positive = 32768
    """Most tokens of a trajectory: prompt, sampled and tool tokens together. Paper: 30K and 90K."""
    turn_tokens: Positive = 32768
    """Most tokens sampled in one assistant turn."""
    tool_calls: Annotated[int, Field(ge=0)] = 256
    """Most tool calls of a trajectory. Paper: up to 256."""
    turns: Positive = 300
    """Most assistant turns of a trajectory."""


class Evaluate(Section):
    problems: Positive = 128
    """How many held-out problems to use (all of the file, if it has fewer)."""
    k: Positive = 16
    """Samples per problem: the k in avg@k. Paper: 16."""
    temperature: Annotated[float, Field(ge=0.0)] = 0.6
    """Temperature of the sampling. 0: greedy. Paper: 0.6."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Sample from the smallest set of tokens whose probabilities sum to at least this. Paper: 0.95."""
    limits: EvaluateLimits = EvaluateLimits()
    """What one trajectory may spend. Paper: 30K and 90K tokens, up to 256 calls."""
    policies: list[Literal["base", "sft", "rl"]] = ["base", "sft", "rl"]
    """Which checkpoints of the run to evaluate."""
