"""Which problems a step trains on. Everything is joined by problem id, and nothing is remembered between calls.

A resumed run must draw the prompts that the interrupted run would have drawn, so a step's prompts are a function of the
problems, the step's number and the seed alone.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from aster.errors import UserError
from aster.seeds import derive


def drop_solved(problem_ids: Sequence[str], history: Mapping[str, Sequence[float]]) -> list[str]:
    """Leave out the problems whose every recorded reward is 1; order is kept (the paper's second RL stage).

    ``history`` maps a problem's id to the rewards of all attempts at it. Problems never attempted stay; ids in ``history`` that
    are not among ``problem_ids`` are of no account.
    """
    return [name for name in problem_ids if not _solved(history.get(name, ()))]


def _solved(rewards: Sequence[float]) -> bool:
    return len(rewards) > 0 and all(reward == 1 for reward in rewards)


def choose_prompts(problem_ids: Sequence[str], step: int, prompts: int, seed: int) -> list[str]:
    """The ``prompts`` problems of a step (0-based): consecutive chunks of an endless stream of shuffled epochs.

    Each epoch holds every problem once, shuffled by ``derive(seed, "prompts", epoch)``. A step that begins in one epoch and
    ends in the next does not draw a problem twice: a problem it has already drawn is skipped in the new epoch until the step is
    full, and comes first in the step after. With fewer problems than ``prompts``, repeats cannot be avoided: the stream is cut
    as it is, and within a step the counts of two problems differ by at most two.

    Raises UserError where there are no problems, ValueError where an id is repeated or ``step`` or ``prompts`` is out of range.
    """
    if not problem_ids:
        raise UserError("rl: no problem is left to draw prompts from; add problems, or set drop_solved to false in this stage")
    if len(set(problem_ids)) != len(problem_ids):
        raise ValueError("problem ids are not unique")
    if step < 0 or prompts < 1:
        raise ValueError(f"step {step} must be at least 0 and prompts {prompts} at least 1")
    first = step * prompts
    stream: list[str] = []
    epoch = 0
    # From the first epoch on, because what an epoch skips depends on the one before. Cheap: 128,000 draws take some 0.1 s.
    while len(stream) < first + prompts:
        order = list(problem_ids)
        random.Random(derive(seed, "prompts", epoch)).shuffle(order)
        # The step under way when this epoch begins has already drawn the last ``begun`` problems.
        begun = len(stream) % prompts
        if len(order) >= prompts:
            order = _postpone(order, set(stream[len(stream) - begun :]), prompts - begun)
        stream += order
        epoch += 1
    return stream[first : first + prompts]


def _postpone(order: list[str], drawn: set[str], places: int) -> list[str]:
    """``order`` with the first ``places`` taken by problems not in ``drawn``; what was skipped follows at once."""
    head: list[str] = []
    skipped: list[str] = []
    for index, name in enumerate(order):
        if len(head) == places:
            return head + skipped + order[index:]
        (skipped if name in drawn else head).append(name)
    return head + skipped
