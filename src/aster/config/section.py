"""What every section of a recipe is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]


@dataclass(frozen=True)
class Free:
    """Marks a field that does not decide the numbers: it may change when a run goes on."""

    when: Callable[[Any], bool] = lambda _: True
    """Of the section: whether the mark holds."""

    def holds(self, section: Any) -> bool:
        """Whether the field is free in this section."""
        return self.when(section)


@dataclass(frozen=True)
class Raised(Free):
    """Marks a field that may only be raised when a run goes on: more adds to what was made, and changes nothing of it."""


FREE = Free()


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
