"""The sections for the problems, and for the limits of an attempt."""

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
    """Problems for the teacher. Empty: those of ``train``. The scripted experts can teach only ``lab`` problems."""
    evaluate: str = "lab"
    """Held-out problems: ``lab`` (its test split), or a file or data set as in ``train``."""
    families: dict[str, PositiveFloat] = {"chain": 1.0}
    """Only for ``lab``: the families (``chain``, ``hunt``) and their weights in the mixture."""
    levels: list[int] = [6, 10]
    """Only for ``lab``: fewest and most steps of a problem, between 1 and 20."""
    columns: dict[Literal["prompt", "answer", "id", "source", "difficulty", "topic"], str] = {}
    """Only for files and data sets: which column holds what, for instance ``{answer: solution}``. A dotted name is a column
    inside another: ``{answer: meta.final}``. ASTER knows the columns of common layouts."""
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
    """What one trajectory may spend; see ``aster.types.Budget``."""

    context_tokens: Positive = 16384
    """Most tokens of a trajectory: prompt, sampled and tool tokens together."""
    turn_tokens: Positive = 16384
    """Most tokens sampled in one assistant turn."""
    tool_calls: Annotated[int, Field(ge=0)] = 50
    """Most tool calls of a trajectory. Paper: 50 in RL."""
    turns: Positive = 64
    """Most assistant turns of a trajectory."""
    wall_seconds: PositiveFloat = 3600.0
    """Most seconds from the first sampling to the end of a trajectory; checked between turns."""

    def budget(self) -> Budget:
        """The limits as a :class:`aster.types.Budget`."""
        return Budget(self.context_tokens, self.turn_tokens, self.tool_calls, self.turns, self.wall_seconds)
