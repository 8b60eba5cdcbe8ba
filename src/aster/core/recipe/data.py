"""The sections of the cold-start data: problems, the teacher, the choice among its trajectories."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from aster.core.recipe.section import Positive, PositiveFloat, Section
from aster.core.types import Budget


class ColdStart(StrEnum):
    """Where RL starts from."""

    DENSE = "dense"
    """SFT on interaction-dense trajectories: ASTER."""
    PROGRAM = "program"
    """SFT on trajectories that write the whole computation as one program, in one call."""
    SPARSE = "sparse"
    """SFT on trajectories that work half in the head and call the tool once or twice."""
    ZERO = "zero"
    """No SFT: RL straight from the base model."""


class Problems(Section):
    train: str = "lab"
    """Problems to train on: ``lab``, or a file (.jsonl or .parquet)."""
    teach: str = ""
    """Problems for the teacher; empty: those of ``train``. The scripted experts can teach ``lab`` problems alone."""
    evaluate: str = "lab"
    """Held-out problems: ``lab`` (its test split), or a file."""
    families: dict[str, PositiveFloat] = {"chain": 1.0}
    """Lab alone: families and their weights in the mixture."""
    levels: list[int] = [6, 10]
    """Lab alone: fewest and most steps of a problem."""
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


class Curate(Section):
    min_calls: Annotated[int, Field(ge=0)] | None = None
    """Keep trajectories with at least so many tool calls. Paper: more than 9. None: by cold start (dense 5, else 1)."""
    max_calls: Annotated[int, Field(ge=0)] | None = None
    """Keep trajectories with at most so many tool calls. None: by cold start (sparse and program 2, else no limit)."""
    size: Positive | None = None
    """Keep at most so many, chosen by the seed. Paper: 4,000. None: all."""

    def band(self, cold_start: ColdStart) -> tuple[int, int | None]:
        """The density band ``(fewest, most)`` in force for a cold start."""
        dense = cold_start is ColdStart.DENSE
        few = self.min_calls if self.min_calls is not None else (5 if dense else 1)
        return few, self.max_calls if self.max_calls is not None or dense else 2
