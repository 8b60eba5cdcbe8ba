"""A reward of your own: a right answer counts most, and working it out with code counts a little.

    aster run lab environment.reward=examples/own_reward.py:reward

A reward is a function of an attempt: its problem, its turns with their calls, and how it ended. It gives a number, or a Score
that also says why. If it raises, or gives NaN, the attempt is recorded as a fault and not trained on.
"""

from aster.environments import Attempt, Score
from aster.grading import extract_boxed, verify
from aster.types import CallStatus

FOR_CODE = 0.2


def reward(attempt: Attempt) -> Score:
    answer = extract_boxed(attempt.final) if attempt.final is not None else None
    verdict = verify(answer, attempt.problem.answer)
    ran = [call for call in attempt.calls if call.status is CallStatus.OK]
    worth = (1 - FOR_CODE) * verdict.correct + FOR_CODE * bool(ran)
    return Score(worth, f"{verdict.reason}; {len(ran)} cells ran", answer)
