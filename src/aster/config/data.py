"""The sections of what is asked, and of what an attempt may spend."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from aster.config.section import Positive, PositiveFloat, Section
from aster.types import Budget


class Problems(Section):
    train: str = "lab"
    """Problems to train on: ``lab``, a file (.jsonl or .parquet), or a data set of the Hugging Face hub:
    ``hf:OWNER/NAME[@CONFIG][:SPLIT]``."""
    teach: str = ""
    """Problems for the teacher; empty: those of ``train``. The scripted experts can teach ``lab`` problems alone."""
    evaluate: str = "lab"
    """Held-out problems: ``lab`` (its test split), or as ``train``."""
    families: dict[str, PositiveFloat] = {"chain": 1.0}
    """Lab alone: families and their weights in the mixture."""
    levels: list[int] = [6, 10]
    """Lab alone: fewest and most steps of a problem."""
    columns: dict[Literal["prompt", "answer", "id", "source", "difficulty", "topic"], str] = {}
    """Files and data sets: the names of columns, dotted where they are in another, for instance ``{answer: meta.final}``. Those
    of the layouts that the field uses are known."""
    prompt_suffix: str = ""
    """Text appended to every prompt of a file, for instance a request for ``\\boxed{}``."""

    @model_validator(mode="after")
    def _check(self) -> Problems:
        unknown = sorted(set(self.families) - {"chain", "hunt"})
        if unknown:
            raise ValueError(f"families: no family named {unknown[0]!r}; there are chain and hunt")
        if len(self.levels) != 2 or not 1 <= self.levels[0] <= self.levels[1] <= 20:
            raise ValueError("levels: must be two whole numbers, fewest and most steps, between 1 and 20")
        return self


class Limits(Section):
    """What one trajectory may spend; see ``core.types.Budget``."""

    context_tokens: Positive = 16384
    """Prompt, sampled and tool tokens together."""
    turn_tokens: Positive = 16384
    """Tokens sampled in one assistant turn."""
    tool_calls: Annotated[int, Field(ge=0)] = 50
    """Tool calls of the trajectory. Paper: 50 in RL."""
    turns: Positive = 64
    """Assistant turns of the trajectory."""
    wall_seconds: PositiveFloat = 3600.0
    """Seconds from the first sampling to the end; checked between turns."""

    def budget(self) -> Budget:
        """The limits as the core's Budget."""
        return Budget(self.context_tokens, self.turn_tokens, self.tool_calls, self.turns, self.wall_seconds)
