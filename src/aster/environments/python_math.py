"""Problems with a known answer: the last ``\\boxed{}`` of the final turn is compared with it. The default environment."""

from __future__ import annotations

from dataclasses import dataclass

from aster.environments.base import Attempt, Environment, Score
from aster.grading import grade_final


@dataclass
class PythonMath(Environment):
    """1 where the verifier finds the answer right, else 0."""

    async def score(self, attempt: Attempt) -> Score:
        """Grade the final turn's text: never thinking, code or tool output."""
        grade = await grade_final(attempt.final, attempt.stop_reason, attempt.problem.answer)
        return Score(float(grade.verdict.correct), grade.verdict.reason, grade.answer)
