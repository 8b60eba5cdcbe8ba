"""What a model behind a server costs, for a teacher and for an evaluation alike."""

from __future__ import annotations

from dataclasses import dataclass

MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Prices:
    """Money per million tokens, in any one currency."""

    read: float = 0.0
    """Of tokens that the model reads. A dialogue of n turns is read n times; no discount for cached tokens is counted."""
    written: float = 0.0
    """Of tokens that it writes, reasoning included."""

    def cost(self, read_tokens: int, written_tokens: int) -> float:
        """What so many tokens cost."""
        return (read_tokens * self.read + written_tokens * self.written) / MILLION
