"""An algorithm of your own: credit for turns, and a loss.

    aster run lab rl.algorithm=examples/own_algorithm.py:TurnCredit      a class: advantages of your own
    aster run lab rl.algorithm=examples/own_algorithm.py:reinforce       a function: a loss, with GRPO's advantages

An algorithm gives each trajectory of a group one advantage, or one for each of its tokens. A loss is a function of flat
tensors, one entry for each trained token, and sums over them: advantages are divided by the batch's tokens already."""

from typing import Any

from aster.algorithms import Group, Grpo, LossTokens
from aster.algorithms.advantages import group_advantages
from aster.types import CallStatus


def reinforce(tokens: LossTokens) -> tuple[Any, dict[str, float]]:
    """The plain policy gradient, without a ratio or a clip."""
    loss = -(tokens.advantages * tokens.logprobs).sum()
    return loss, {"tokens": float(tokens.logprobs.numel())}


class TurnCredit(Grpo):
    """GRPO, in which a turn whose code fails is worth ``penalty`` less than the rest of its trajectory."""

    def __init__(self, penalty: float = 0.5) -> None:
        super().__init__()
        self.penalty = penalty

    def advantages(self, group: Group) -> list[list[float]]:
        found = []
        advantages = group_advantages([trajectory.reward for trajectory in group])
        for trajectory, advantage in zip(group, advantages, strict=True):
            tokens = [float(advantage)] * len(trajectory.token_ids)
            for turn in trajectory.turns:
                if any(call.status is not CallStatus.OK for call in turn.calls):
                    tokens[turn.start : turn.end] = [float(advantage) - self.penalty] * (turn.end - turn.start)
            found.append(tokens)
        return found
