"""CISPO: GRPO's advantages, with clipped ratios as weights of the policy gradient (algorithms/losses.py: ``cispo_loss``).

No token loses its gradient. The default bounds a ratio at 5 from above and not from below; MiniMax-M1 tuned the upper bound
only."""

from __future__ import annotations

from aster.algorithms.base import Loss
from aster.algorithms.grpo import Grpo


class Cispo(Grpo):
    """Clipped importance sampling policy optimization (MiniMax-M1, arXiv 2506.13585)."""

    recipe_fields = ("importance_cap", "normalize_std")

    def __init__(
        self,
        clip_low: float = 1.0,
        clip_high: float = 4.0,
        importance_cap: float = 2.0,
        normalize_std: bool = True,
    ) -> None:
        """Ratios below 1 - ``clip_low`` or above 1 + ``clip_high`` are clipped; the others are as the recipe has them."""
        settings = {"clip_low": clip_low, "clip_high": clip_high, "importance_cap": importance_cap}
        super().__init__(normalize_std=normalize_std, loss=Loss("cispo", settings))
