"""GSPO: GRPO's advantages, with the ratio and the clip of whole sequences (algorithms/losses.py: ``gspo_loss``).

The defaults of the clip are the paper's (section 5.1): sequence ratios stay within some ten thousandths of 1.
"""

from __future__ import annotations

from aster.algorithms.base import Loss
from aster.algorithms.grpo import Grpo


class Gspo(Grpo):
    """Group sequence policy optimization (arXiv 2507.18071)."""

    recipe_fields = ("importance_cap", "normalize_std")

    def __init__(
        self,
        clip_low: float = 3e-4,
        clip_high: float = 4e-4,
        importance_cap: float = 2.0,
        normalize_std: bool = True,
    ) -> None:
        """Sequence ratios below 1 - ``clip_low`` or above 1 + ``clip_high`` are clipped; the others are as the recipe has
        them."""
        settings = {"clip_low": clip_low, "clip_high": clip_high, "importance_cap": importance_cap}
        super().__init__(normalize_std=normalize_std, loss=Loss("gspo", settings))
