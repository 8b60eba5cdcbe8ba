"""GRPO agrees with verl's, an independent implementation: advantages, loss, gradient, counts, on ragged batches.

The stored numbers (``make_oracle.py`` wrote them with verl 0.9.1) are always compared, and verl itself where it is installed.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch

from aster.algorithms.advantages import group_advantages
from aster.algorithms.losses import clipped_policy_loss, merge_metrics
from tests.algorithms import make_oracle

RECORD: dict[str, Any] = json.loads(make_oracle.ORACLE.read_text(encoding="utf-8"))
CLIPS = ("clip_low", "clip_high", "dual_clip", "importance_cap")
# In float64 the two agree to rounding; in float32, which training uses, to the parity the project promises.
PRECISIONS = [pytest.param(torch.float64, 1e-9, id="float64"), pytest.param(torch.float32, 1e-5, id="float32")]


def close(ours: Any, theirs: Any, tolerance: float) -> None:
    np.testing.assert_allclose(np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float), rtol=tolerance, atol=tolerance)


def our_advantages(case: dict[str, Any]) -> list[float]:
    """One advantage a row; the rows of a group are adjacent."""
    found: list[float] = []
    for _, rows in itertools.groupby(case["rows"], key=lambda row: row["group"]):
        found += group_advantages([row["reward"] for row in rows], case["settings"]["normalize_std"]).tolist()
    return found


def flat(rows: list[dict[str, Any]], name: str, dtype: torch.dtype) -> torch.Tensor:
    """The trained tokens' values of some rows, one after another."""
    return torch.tensor([v for row in rows for v, m in zip(row[name], row["mask"], strict=True) if m], dtype=dtype)


def our_loss(
    case: dict[str, Any], dtype: torch.dtype, first: int = 0, last: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """Loss, gradient and metrics of the rows ``first`` to ``last``, scaled by the tokens of the whole batch."""
    rows, advantages = case["rows"][first:last], our_advantages(case)[first:last]
    total = sum(sum(row["mask"]) for row in case["rows"])
    scaled = [a / total for row, a in zip(rows, advantages, strict=True) for _ in range(sum(row["mask"]))]
    new = flat(rows, "new", dtype).requires_grad_()
    loss, metrics = clipped_policy_loss(
        new,
        flat(rows, "old", dtype),
        flat(rows, "sampler", dtype),
        torch.tensor(scaled, dtype=dtype),
        **{name: case["settings"][name] for name in CLIPS},
    )
    loss.backward()
    assert new.grad is not None
    return loss.detach(), new.grad, metrics


@pytest.fixture(params=list(RECORD))
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    return RECORD[request.param]


def test_advantages_agree(case: dict[str, Any]) -> None:
    close(our_advantages(case), case["verl"]["advantages"], 1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_loss_and_gradient_agree(case: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    loss, gradient, metrics = our_loss(case, dtype)
    close(loss, case["verl"]["loss"], tolerance)
    # Times N: undo the 1/N in every entry, which would make any absolute tolerance easy.
    close(gradient * metrics["tokens"], np.multiply(case["verl"]["gradient"], metrics["tokens"]), tolerance)


def test_counts_and_weights_agree(case: dict[str, Any]) -> None:
    _, _, metrics = our_loss(case, torch.float64)
    verl, tokens = case["verl"], metrics["tokens"]
    assert tokens == len(verl["importance"])
    assert metrics["clipped_high"] + metrics["clipped_low"] == round(verl["clipped_fraction"] * tokens)
    assert metrics["dual_clipped"] == round(verl["dual_clipped_fraction"] * tokens)
    close(metrics["importance_sum"], sum(verl["importance"]), 1e-9)
    assert metrics["importance_capped"] == sum(w == case["settings"]["importance_cap"] for w in verl["importance"])
    if max(verl["kl"]) < 10:  # verl bounds it there
        close(metrics["kl_sum"], sum(verl["kl"]), 1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_parts_of_a_batch_agree_and_add_up(case: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    cuts = case["verl"]["cuts"]
    parts = [our_loss(case, dtype, first, last) for first, last in itertools.pairwise(cuts)]
    close(torch.stack([loss for loss, _, _ in parts]), case["verl"]["part_losses"], tolerance)
    whole_loss, whole_gradient, whole_metrics = our_loss(case, dtype)
    close(sum(loss for loss, _, _ in parts), whole_loss, tolerance)
    close(torch.cat([gradient for _, gradient, _ in parts]), whole_gradient, tolerance)
    assert merge_metrics(metrics for _, _, metrics in parts) == pytest.approx(whole_metrics, rel=tolerance)


def test_the_batches_exercise_what_they_are_for() -> None:
    totals = merge_metrics(our_loss(case, torch.float64)[2] for case in RECORD.values())
    assert all(totals[name] > 5 for name in ("clipped_high", "clipped_low", "dual_clipped", "importance_capped")), totals
    assert totals["ratio_max"] == pytest.approx(np.exp(20))
    assert totals["ratio_min"] == pytest.approx(np.exp(-20))
    rows = [row for case in RECORD.values() for row in case["rows"]]
    assert any(0 in row["mask"][: np.flatnonzero(row["mask"])[-1]] for row in rows), "no hole in any mask"
    assert sum(a == 0.0 for case in RECORD.values() for a in our_advantages(case)) >= 10, "too few groups of equal rewards"


def test_verl_itself_still_says_so(case: dict[str, Any]) -> None:
    pytest.importorskip("verl", reason="verl is not installed (verl[verl-core]==0.9.1); compared with its stored numbers alone")
    again = make_oracle.ask_verl({"settings": case["settings"], "rows": case["rows"]})
    assert again.keys() == case["verl"].keys()
    for name, value in again.items():
        close(value, case["verl"][name], 1e-9)
