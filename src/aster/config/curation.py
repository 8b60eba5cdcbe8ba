"""The sections of the cold start itself: which one, and the choice among the teacher's trajectories."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from aster.config.section import Positive, Section, Share


class ColdStart(StrEnum):
    """Where RL starts from: the five of the paper, and one rival of ours."""

    ZERO = "zero"
    """No SFT: RL straight from the base model."""
    ZERO_FORCE_TOOL = "zero_force_tool"
    """No SFT, and a text in every prompt that demands the tool (``rollout.force_tool``)."""
    RETOOL = "retool"
    """SFT on reasoning in text in which one or two calculations are done by code. Stands for ReTool's set."""
    DEMYAGENT = "demyagent"
    """SFT on one or two larger cells that do the computation. Stands for DemyAgent's set."""
    ASTER = "aster"
    """SFT on interaction-dense trajectories."""
    PROGRAM = "program"
    """SFT on trajectories that write the whole computation as one program, in one call. Not in the paper."""


WITHOUT_SFT = frozenset({ColdStart.ZERO, ColdStart.ZERO_FORCE_TOOL})
FORMER_NAMES = {"dense": "aster", "sparse": "retool or demyagent"}
"""What recipes of earlier versions call them."""


def read_cold_start(value: object) -> ColdStart | str:
    """A preset, or the path of a set; pydantic's error otherwise."""
    text = str(value)
    if text in list(ColdStart):
        return ColdStart(text)
    if "/" in text or text.endswith((".jsonl", ".jsonl.gz")):
        return text
    renamed = f"; {text!r} is now {FORMER_NAMES[text]}" if text in FORMER_NAMES else ""
    message = "must be {names}, or a set: a path ending in .jsonl or .jsonl.gz, or the path of a run folder with a / in it"
    raise PydanticCustomError("cold_start", message + renamed, {"names": ", ".join(ColdStart)})


ColdStartOrSet = Annotated[ColdStart | str, BeforeValidator(read_cold_start)]
"""A preset's name, or the path of a set of trajectories."""


def cold_start_name(value: ColdStart | str) -> str:
    """What a cold start is called in names of folders and tables: a set goes by its file's name without endings."""
    if isinstance(value, ColdStart):
        return value.value
    stem = PurePath(value).name.removesuffix(".gz").removesuffix(".jsonl")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "set"


class Band(Section):
    """A range of whole numbers, both ends included."""

    min: Annotated[int, Field(ge=0)] | None = None
    """The least that is kept. None: no limit."""
    max: Annotated[int, Field(ge=0)] | None = None
    """The most that is kept. None: no limit."""

    @model_validator(mode="after")
    def _check(self) -> Band:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min: {self.min} is above max ({self.max}): nothing would be kept")
        return self

    def holds(self, value: float) -> bool:
        """Whether a value lies in it."""
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)

    @property
    def open(self) -> bool:
        """Whether it keeps everything."""
        return self.min is None and self.max is None

    def __str__(self) -> str:
        if self.min is None:
            return f"at most {self.max}" if self.max is not None else "any number of"
        return f"at least {self.min}" if self.max is None else f"{self.min} to {self.max}"


class Density(Band):
    """A band of tool calls per trajectory, with its limits left to the cold start by default."""

    min: Annotated[int, Field(ge=0)] | None = None
    """At least so many tool calls. None, and no max either: by cold start (aster ``dense_calls``, the sparse ones 1)."""
    max: Annotated[int, Field(ge=0)] | None = None
    """At most so many tool calls. None, and no min either: by cold start (the sparse ones 2, else no limit)."""


class Curate(Section):
    """The chain of filters, in the order in which they are applied. The default is the paper's."""

    verified: bool | None = None
    """Keep only trajectories whose answer was verified as right. None: yes, but a set that is the cold start is taken as it
    is."""
    succeeded: bool | None = None
    """Keep only trajectories in which every call ran without an error. None: as for ``verified``."""
    density: Density = Density()
    """Tool calls of a trajectory whose code ran: the interaction density. A set given as the cold start: any number."""
    dense_calls: Annotated[int, Field(ge=0)] = 10
    """Fewest calls of the cold start ``aster``, where ``density`` says nothing. Paper: more than nine."""
    tokens: Band = Band()
    """Tokens written in the whole trajectory, where its author counted them; else words."""
    thinking_per_call: Band = Band()
    """Tokens of thinking (or words, see ``tokens``) for each tool call. One without a call counts as if it had one."""
    repeated_cells: Share = 1.0
    """At most this share of the calls is code that an earlier call has run already, but for spacing. 1: off."""
    repeated_text: Share = 1.0
    """At most this share of the eight-word sequences of the thinking is there for a second time: loops. 1: off."""
    rechecks: Share = 1.0
    """At most this share of the calls comes after the answer is known: post-hoc verification. 1: off."""
    causal: Share = 0.0
    """At least this share of the calls after the first uses what an earlier call left: a name it bound, a number it printed.
    0: off."""
    unique: bool | None = None
    """Of trajectories that are the same (the same problem, and the same turns to the character) keep one. None: yes, where
    several sets are read, for they may overlap."""
    per_problem: Positive | None = None
    """Keep at most so many trajectories of a problem, chosen by the seed. None: all."""
    size: Positive | None = None
    """Keep at most so many, chosen by the seed. Paper: 4,000. None: all."""
    balance: list[Literal["difficulty", "topic"]] = ["difficulty", "topic"]
    """What ``size`` is shared out over: each kind of problem gets an equal part, as far as it has so many. Empty: over
    nothing."""

    def resolved(self, cold_start: ColdStart | str, sources: int = 1) -> Curate:
        """The chain in force for a cold start and so many sets: every None that stands for "by cold start" or "by the number of
        sets" filled in."""
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
