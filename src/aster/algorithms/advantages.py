"""GRPO's advantages: a reward measured against the other attempts at the same problem.

For a group of K attempts with rewards r_1 .. r_K

    A_i = (r_i - mean(r)) / (std(r) + eps)

and every token that attempt i sampled gets A_i. This is group relative policy optimization (DeepSeekMath, arXiv 2402.03300,
outcome supervision), and DAPO (arXiv 2503.14476) keeps it. The standard deviation is the sample's (divided by K - 1), as
``torch.std`` has it and so the common implementations. ``normalize_std=False`` leaves the division out, as Dr. GRPO does
(arXiv 2503.20783): dividing makes problems that are nearly always or nearly never solved weigh more.

Deviations from the papers:

- A group whose rewards are all equal gets exact zeros, and so does a group of one, which has nothing to be compared with.
  (Otherwise rounding in the mean leaves a residue, and verl gives a group of one its raw reward.)
- No KL term enters the reward, as in DAPO and ASTER.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def group_advantages(rewards: Sequence[float], normalize_std: bool = True, eps: float = 1e-6) -> np.ndarray:
    """The advantages (K,), float64, of one group's rewards (K,). Raises ValueError where the group is empty or not finite."""
    r = np.asarray(rewards, dtype=np.float64)
    if r.ndim != 1 or r.size == 0:
        raise ValueError(f"a group is a flat sequence of at least one reward, this has shape {r.shape}")
    if not np.isfinite(r).all():
        raise ValueError(f"a reward is not finite: {r.tolist()}")
    if r.min() == r.max():
        return np.zeros_like(r)
    centred = r - r.mean()
    return centred / (r.std(ddof=1) + eps) if normalize_std else centred
