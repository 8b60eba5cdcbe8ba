"""The sections of the cold start: which one to use, and how to choose among the teacher's trajectories."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from aster.config.section import Positive, Section, Share


class ColdStart(StrEnum):
    """Where RL starts from: the paper's five cold starts, and one of our own."""

    ZERO = "zero"
    """No SFT: RL straight from the base model."""
    ZERO_FORCE_TOOL = "zero_force_tool"
    """No SFT. Every prompt contains a text that demands the tool (``rollout.force_tool``)."""
    RETOOL = "retool"
    """SFT on reasoning in text, with one or two calculations done by code. It represents ReTool's data set."""
    DEMYAGENT = "demyagent"
    """SFT on one or two larger cells that do the computation. It represents DemyAgent's data set."""
    ASTER = "aster"
    """SFT on interaction-dense trajectories: many small tool calls each."""
    PROGRAM = "program"
    """SFT on trajectories that write the whole computation as one program, in one call. Not in the paper."""


WITHOUT_SFT = frozenset({ColdStart.ZERO, ColdStart.ZERO_FORCE_TOOL})
FORMER_NAMES = {"dense": "aster", "sparse": "retool or demyagent"}
"""Names in recipes of earlier versions, and the names they have now."""


def read_cold_start(value: object) -> ColdStart | str:
    """A preset, or the path of a data set. Raises pydantic's error where it is neither."""
    text = str(value)
    if text in list(ColdStart):
        return ColdStart(text)
    if "/" in text or text.endswith((".jsonl", ".jsonl.gz")):
        return text
    renamed = f"; {text!r} is now {FORMER_NAMES[text]}" if text in FORMER_NAMES else ""
    message = "must be {names}, or a data set: a path ending in .jsonl or .jsonl.gz, or the path of a run folder with a / in it"
    raise PydanticCustomError("cold_start", message + renamed, {"names": ", ".join(ColdStart)})


ColdStartOrSet = Annotated[ColdStart | str, BeforeValidator(read_cold_start)]
"""A preset's name, or the path of a data set of trajectories."""


def cold_start_name(value: ColdStart | str) -> str:
    """The name of a cold start in folder names and tables. For a data set: its file's name without its endings."""
    if isinstance(value, ColdStart):
        return value.value
    stem = PurePath(value).name.removesuffix(".gz").removesuffix(".jsonl")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "set"


class Band(Section):
    """A range of whole numbers, both ends included."""

    min: Annotated[int, Field(ge=0)] | None = None
    """Lowest value that is kept. None: no limit."""
    max: Annotated[int, Field(ge=0)] | None = None
    """Highest value that is kept. None: no limit."""

    @model_validator(mode="after")
    def _check(self) -> Band:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min: {self.min} is above max ({self.max}): nothing would be kept")
        return self

    def holds(self, value: float) -> bool:
        """Whether a value is in the range."""
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)

    @property
    def open(self) -> bool:
        """Whether the range has no limits and keeps everything."""
        return self.min is None and self.max is None

    def __str__(self) -> str:
        if self.min is None:
            return f"at most {self.max}" if self.max is not None else "any number of"
        return f"at least {self.min}" if self.max is None else f"{self.min} to {self.max}"


class Density(Band):
    """A range of tool calls per trajectory. By default the cold start sets its limits."""

    min: Annotated[int, Field(ge=0)] | None = None
    """Fewest tool calls that are kept. With min and max both None, the cold start sets it: ``dense_calls`` for aster, 1 for the
    other presets."""
    max: Annotated[int, Field(ge=0)] | None = None
    """Most tool calls that are kept. With min and max both None, the cold start sets it: no limit for aster, 2 for the other
    presets."""


class Curate(Section):
    """The chain of filters, in the order in which they are applied. The default is the paper's chain."""

    verified: bool | None = None
    """Keep only trajectories whose answer was verified as right. None: yes for a preset, no where ``cold_start`` is a data
    set."""
    succeeded: bool | None = None
    """Keep only trajectories in which every call ran without an error. None: as in ``verified``."""
    density: Density = Density()
    """How many tool calls with code that ran a trajectory has: the interaction density. The default has no limit where
    ``cold_start`` is a data set."""
    dense_calls: Annotated[int, Field(ge=0)] = 10
    """Fewest calls for the cold start ``aster`` where ``density`` has no limits. Paper: more than nine."""
    tokens: Band = Band()
    """How many tokens the model wrote in the whole trajectory. Words, where the author of the data did not count tokens."""
    thinking_per_call: Band = Band()
    """Tokens of thinking (or words, see ``tokens``) per tool call. A trajectory without a call counts as if it had one."""
    repeated_cells: Share = 1.0
    """Highest share of calls that repeat the code of an earlier call; differences in spacing are ignored. 1: off."""
    repeated_text: Share = 1.0
    """Highest share of eight-word sequences in the thinking that occurred before: text in loops. 1: off."""
    rechecks: Share = 1.0
    """Highest share of calls made after the answer is known: post-hoc verification. 1: off."""
    causal: Share = 0.0
    """Lowest share of the calls after the first that use a result of an earlier call: a name it bound, or a number it
    printed. 0: off."""
    unique: bool | None = None
    """Keep only one of several identical trajectories (the same problem, and the same turns to the character). None: yes where
    several data sets are read, because they may overlap; otherwise no."""
    per_problem: Positive | None = None
    """Most trajectories to keep of one problem. The seed chooses them. None: all."""
    size: Positive | None = None
    """Most trajectories to keep in total. The seed chooses them. Paper: 4,000. None: all."""
    balance: list[Literal["difficulty", "topic"]] = ["difficulty", "topic"]
    """Divide ``size`` over these properties: each kind of problem gets an equal part, as far as it has enough trajectories.
    Empty: choose without regard to kind."""

    def resolved(self, cold_start: ColdStart | str, sources: int = 1) -> Curate:
        """The chain for this cold start and this number of data sets (``sources``): each None whose meaning depends on them is
        replaced by its value."""
        is_set = not isinstance(cold_start, ColdStart)
        density = self.density
        if density.open and not is_set:
            density = Density(min=self.dense_calls) if cold_start is ColdStart.ASTER else Density(min=1, max=2)
        return self.model_copy(
            update={
                "verified": self.verified if self.verified is not None else not is_set,
                "succeeded": self.succeeded if self.succeeded is not None else not is_set,
                "density": density,
                "unique": self.unique if self.unique is not None else sources > 1,
            }
        )
