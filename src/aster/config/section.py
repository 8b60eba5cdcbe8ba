"""The base class of a recipe's sections, and the types and marks of their fields."""

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
    """Marks a field that does not affect the results: it may change when a run is continued."""

    when: Callable[[Any], bool] = lambda _: True
    """Given the section, whether the mark applies."""

    def holds(self, section: Any) -> bool:
        """Whether the mark applies in this section."""
        return self.when(section)


@dataclass(frozen=True)
class Raised(Free):
    """Marks a field that may only be raised when a run is continued: a higher value adds results and does not change those that
    exist."""


FREE = Free()


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
