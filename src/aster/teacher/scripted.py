"""A scripted expert as a policy: it reads the tool's real output and writes the next turn."""

from __future__ import annotations

import random

from aster.chat import Qwen3Dialect
from aster.engines import Completion, SamplingParams
from aster.teacher.lab_experts import Expert, Script
from aster.types import Problem


class ScriptedTeacher:
    """A Sampler for one attempt at one lab problem. ValueError where the expert cannot read an output; the loop records it."""

    def __init__(self, expert: Expert, problem: Problem, seed: int, dialect: Qwen3Dialect) -> None:
        self.dialect = dialect
        self.script: Script = expert(problem.metadata["walk"], random.Random(seed))
        self.began = False

    def open(self, sequence: str) -> None:
        """Does nothing: there is nothing to prepare."""

    def release(self, sequence: str) -> None:  # noqa: ARG002 - one teacher, one sequence
        """End the script."""
        self.script.close()

    async def sample(self, token_ids: list[int], params: SamplingParams) -> Completion:
        """The expert's next turn. Its log-probabilities are zero, because it was not sampled."""
        try:
            if self.began:
                thinking, code = self.script.send(self._heard(token_ids))
            else:
                self.began = True
                thinking, code = next(self.script)
            turn = self.dialect.turn_ids(thinking, "", [code])
        except StopIteration as ending:
            thinking, answer = ending.value
            turn = self.dialect.turn_ids(thinking, f"\\boxed{{{answer}}}", [])
        cut = turn[: params.max_tokens]
        return Completion(cut, [0.0] * len(cut), stopped=len(cut) == len(turn))

    def _heard(self, token_ids: list[int]) -> str:
        """The last tool response, as text."""
        text = self.dialect.decode(token_ids)
        return text.rpartition("<tool_response>\n")[2].partition("\n</tool_response>")[0]
