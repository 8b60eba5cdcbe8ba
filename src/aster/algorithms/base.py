"""The algorithm door: what RL needs to know to turn a group of rewarded trajectories into a gradient.

An algorithm has two parts:

    advantages(group)    a number for each trajectory of a group, or one for each of its tokens
    loss                 a function of log-probabilities and advantages; or the name of one that a remote engine computes

:class:`~aster.algorithms.grpo.Grpo` is the default, GSPO and CISPO come with it. A recipe names one of these, or a user's class
by ``module:Class`` or ``file.py:Class``; a plain function is a loss that gets GRPO's advantages (``rl.algorithm``).

Importing this module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from aster.algorithms.tokens import LossFunction, LossTokens
from aster.doors import blame, place_of
from aster.errors import UserError
from aster.types import FAULTS, TrainingSample, Trajectory

if TYPE_CHECKING:
    from torch import Tensor

Group = list[Trajectory]
"""The attempts at one problem that are compared with each other: K of them."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss with its settings."""

    name: str
    """What engines know it by: ``cross_entropy``, ``ppo``, ``gspo``, ``cispo``; a user's own has its function's name."""
    settings: Mapping[str, float] = field(default_factory=dict)
    function: LossFunction | None = None
    """Computes it here. None: the one of that name in :data:`aster.algorithms.losses.LOSSES`."""

    def __call__(self, tokens: LossTokens) -> tuple[Tensor, dict[str, float]]:
        """The loss and its metrics. UserError where a function of the user's fails, or gives something else."""
        from aster.algorithms.losses import LOSSES

        if self.function is None:
            return LOSSES[self.name](tokens, **self.settings)
        expected = "loss(tokens: LossTokens, **settings) -> (a scalar tensor, metrics with 'tokens' among them)"
        try:
            found = self.function(tokens, **self.settings)
        except Exception as error:
            raise UserError(f"rl.algorithm: {blame(error, expected)}") from error
        if not (isinstance(found, tuple) and len(found) == 2 and getattr(found[0], "ndim", None) == 0 and "tokens" in found[1]):
            raise UserError(f"rl.algorithm: {place_of(self.function)}: gave {found!r:.80}; expected {expected}")
        return found


class Algorithm(Protocol):
    """What :mod:`aster.rl` asks of an algorithm."""

    @property
    def loss(self) -> Loss:
        """The loss of every minibatch."""

    def advantages(self, group: Group) -> Sequence[float | Sequence[float]]:
        """For each trajectory of a group one number, which all its sampled tokens get, or T numbers, one for each of its tokens
        (those that were not sampled are ignored). A group holds no attempt that failed because of an engine or a sandbox. Where
        all are 0 the group is not trained on."""


def to_samples(groups: Sequence[Group], algorithm: Algorithm, batch_tokens: int) -> list[TrainingSample]:
    """The trajectories of some groups as training samples, with advantages divided by ``batch_tokens``, the sampled tokens of
    the whole batch. Groups whose advantages are all 0 give none. UserError where the algorithm gives too few or no numbers."""
    samples: list[TrainingSample] = []
    for group in map(healthy, groups):
        try:
            advantages = algorithm.advantages(group) if group else []
        except Exception as error:
            raise UserError(
                f"rl.algorithm: {blame(error, 'a number for each trajectory, or for each of its tokens')}"
            ) from error
        _check(algorithm, group, advantages)
        if all(not any(each) if isinstance(each, Sequence) else not each for each in advantages):
            continue
        for trajectory, each in zip(group, advantages, strict=True):
            weights = [a / batch_tokens for a in each] if isinstance(each, Sequence) else float(each) / batch_tokens
            if trajectory.sampled_tokens:
                samples.append(TrainingSample(trajectory.token_ids, trajectory.loss_mask, weights, trajectory.logprobs))
    return samples


def healthy(group: Group) -> Group:
    """Without attempts that failed because of an engine, a sandbox or an environment: the policy is not trained on them."""
    return [trajectory for trajectory in group if trajectory.stop_reason not in FAULTS]


def is_equal(group: Group) -> bool:
    """True where all rewards are equal."""
    return len({trajectory.reward for trajectory in healthy(group)}) <= 1


def _check(algorithm: Algorithm, group: Group, advantages: Sequence[float | Sequence[float]]) -> None:
    gave = f"rl.algorithm: {type(algorithm).__name__}.advantages gave"
    if len(advantages) != len(group):
        raise UserError(f"{gave} {len(advantages)} entries for {len(group)} trajectories; give one for each")
    for trajectory, each in zip(group, advantages, strict=True):
        tokens = len(trajectory.token_ids)
        if isinstance(each, Sequence) and len(each) != tokens:
            raise UserError(f"{gave} {len(each)} numbers for a trajectory of {tokens} tokens; give one, or one for each token")
        if not all(map(math.isfinite, each if isinstance(each, Sequence) else [each])):
            raise UserError(f"{gave} a number that is not finite, for problem {trajectory.problem_id}")
