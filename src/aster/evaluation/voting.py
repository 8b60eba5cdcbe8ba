"""maj@k: the accuracy of the answer that most samples of a problem give."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aster.grading import verify

Equal = Callable[[str, str], bool]


def verified_equal(first: str, second: str) -> bool:
    """Whether the verifier finds two answers equal. It takes one of them as the known answer, so both orders are tried."""
    return verify(first, second).correct or verify(second, first).correct


def majority(answers: Sequence[str | None], rewards: Sequence[float], equal: Equal = verified_equal) -> float:
    """maj@k of one problem: 1 where the answer that most samples gave is right, else 0.

    ``answers`` and ``rewards`` belong together, sample by sample. The verifier puts answers into classes of equal ones, in
    order, each compared with the first of every class; so ``1/2`` and ``0.5`` vote together. Samples without an answer do not
    vote; without any vote the result is 0. If several classes have the most votes, the result is the share of them that are
    right, which is the average of a random choice among them. A class is right if most of its votes were right. (Wang et
    al., Self-Consistency, 2022, arXiv 2203.11171, for the vote.)
    """
    if len(answers) != len(rewards):
        raise ValueError(f"{len(answers)} answers but {len(rewards)} rewards")
    classes: list[list[float]] = []
    first: list[str] = []
    known: dict[str, int] = {}
    for answer, reward in zip(answers, rewards, strict=True):
        if answer is None or not answer.strip():
            continue
        if answer not in known:
            place = next((index for index, other in enumerate(first) if equal(answer, other)), len(first))
            if place == len(first):
                first.append(answer)
                classes.append([])
            known[answer] = place
        classes[known[answer]].append(reward)
    if not classes:
        return 0.0
    votes = max(map(len, classes))
    winners = [members for members in classes if len(members) == votes]
    return sum(2 * sum(members) > len(members) for members in winners) / len(winners)
