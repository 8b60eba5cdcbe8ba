"""GRPO as ASTER uses it: group-relative advantages, PPO's clipped loss with DAPO's asymmetric clip.

    A_i   = (r_i - mean(r)) / (std(r) + eps)           for every token that attempt i sampled (algorithms/advantages.py)
    loss  = sum over tokens of w * clip(ratio, A)      a mean over the tokens of the whole batch (algorithms/losses.py)

The defaults are those of the paper (clip 0.2 and 0.28) and of its community reproduction (dual clip 10, importance cap 2).
"""

from __future__ import annotations

from collections.abc import Sequence

from aster.algorithms.advantages import group_advantages
from aster.algorithms.base import Group, Loss


class Grpo:
    """Group relative policy optimization (arXiv 2402.03300) with DAPO's changes (arXiv 2503.14476)."""

    recipe_fields: tuple[str, ...] = ("clip_low", "clip_high", "dual_clip", "importance_cap", "normalize_std")
    """Fields of the recipe's section ``rl`` that the constructor takes."""

    def __init__(
        self,
        clip_low: float = 0.2,
        clip_high: float = 0.28,
        dual_clip: float = 10.0,
        importance_cap: float = 2.0,
        normalize_std: bool = True,
        loss: Loss | None = None,
    ) -> None:
        """The recipe's fields of these names explain the settings. ``loss``: another one in the place of PPO's."""
        self.normalize_std = normalize_std
        settings = {"clip_low": clip_low, "clip_high": clip_high, "dual_clip": dual_clip, "importance_cap": importance_cap}
        self._loss = loss or Loss("ppo", settings)

    @property
    def loss(self) -> Loss:
        """PPO's clipped loss, or the one that was given."""
        return self._loss

    def advantages(self, group: Group) -> Sequence[float | Sequence[float]]:
        """One for each trajectory: its reward against the group's mean."""
        return [float(each) for each in group_advantages([trajectory.reward for trajectory in group], self.normalize_std)]
