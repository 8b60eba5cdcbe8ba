"""The policy losses agree with verl's and TRL's, two independent implementations: value, gradient and counts, on ragged batches
in which every token has an advantage of its own.

The stored numbers (``make_loss_oracle.py`` wrote them with verl 0.9.1 and TRL 1.16.0) are always compared, and a library itself
where it is installed.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from aster.algorithms.losses import LOSSES, merge_metrics
from aster.algorithms.tokens import LossTokens
from tests.algorithms import make_loss_oracle

RECORD: dict[str, Any] = json.loads(make_loss_oracle.ORACLE.read_text(encoding="utf-8"))
# In float64 the libraries and ASTER agree to rounding, and to the exp(-20) at which ASTER bounds a ratio and TRL does not; in
# float32, which training uses, to the parity the project promises.
PRECISIONS = [pytest.param(torch.float64, 1e-8, id="float64"), pytest.param(torch.float32, 1e-5, id="float32")]
BY_LIBRARY = [
    (library, case, loss)
    for case, batch in RECORD.items()
    for library in ("verl", "trl")
    for loss in make_loss_oracle.LOSSES
    if loss in batch[library]
]


def close(ours: Any, theirs: Any, tolerance: float) -> None:
    np.testing.assert_allclose(np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float), rtol=tolerance, atol=tolerance)


def lengths_of(case: str) -> list[int]:
    """Trained tokens of each row."""
    return [sum(row["mask"]) for row in RECORD[case]["rows"]]


def flat(case: str, name: str, dtype: torch.dtype) -> torch.Tensor:
    """The trained tokens' values, row after row."""
    rows = RECORD[case]["rows"]
    return torch.tensor([v for row in rows for v, m in zip(row[name], row["mask"], strict=True) if m], dtype=dtype)


def ours(case: str, loss_name: str, dtype: torch.dtype = torch.float64) -> tuple[float, np.ndarray, dict[str, float]]:
    """Loss, gradient times the batch's tokens, and metrics."""
    settings, lengths = RECORD[case]["settings"], lengths_of(case)
    total = sum(lengths)
    new = flat(case, "new", dtype).requires_grad_()
    tokens = LossTokens(
        new, flat(case, "old", dtype), flat(case, "sampler", dtype), flat(case, "advantages", dtype) / total, lengths
    )
    loss, metrics = LOSSES[loss_name](tokens, importance_cap=settings["importance_cap"], **settings[loss_name])
    loss.backward()
    assert new.grad is not None
    # Times N: undo the 1/N in every entry, which would make any absolute tolerance easy.
    return loss.item(), new.grad.numpy() * total, metrics


def by_sequence(case: str, values: Any) -> list[float]:
    """Sums over the tokens of each row."""
    ends = np.cumsum(lengths_of(case))[:-1]
    return [float(part.sum()) for part in np.split(np.asarray(values, dtype=float), ends)]


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(("library", "case", "loss_name"), BY_LIBRARY)
def test_loss_and_gradient_agree(library: str, case: str, loss_name: str, dtype: torch.dtype, tolerance: float) -> None:
    theirs = RECORD[case][library][loss_name]
    loss, gradient, metrics = ours(case, loss_name, dtype)
    close(loss, theirs["loss"], tolerance)
    expected = np.multiply(theirs["gradient"], metrics["tokens"])
    if (library, loss_name) == ("trl", "gspo") and not RECORD[case]["one_advantage"]:
        # TRL's flows through the mean over the sequence, which spreads it evenly over the tokens.
        close(by_sequence(case, gradient), by_sequence(case, expected), tolerance)
    else:
        close(gradient, expected, tolerance)


@pytest.mark.parametrize("case", list(RECORD))
@pytest.mark.parametrize("loss_name", make_loss_oracle.LOSSES)
def test_metrics_agree(case: str, loss_name: str) -> None:
    _, _, metrics = ours(case, loss_name)
    verl, trl, tokens = RECORD[case]["verl"], RECORD[case]["trl"].get(loss_name, {}), metrics["tokens"]
    assert tokens == len(verl["importance"])
    assert metrics["clipped_high"] + metrics["clipped_low"] == round(verl[loss_name]["clipped"] * tokens)
    assert metrics["dual_clipped"] == round(verl[loss_name]["dual_clipped"] * tokens)
    for side in ("clipped_high", "clipped_low"):
        if side in trl:
            assert metrics[side] == round(trl[side] * tokens)
    close(metrics["importance_sum"], sum(verl["importance"]), 1e-9)
    assert metrics["importance_capped"] == sum(w == RECORD[case]["settings"]["importance_cap"] for w in verl["importance"])
    if max(verl["kl"]) < 10:  # verl bounds it there
        close(metrics["kl_sum"], sum(verl["kl"]), 1e-9)


def test_the_batches_exercise_what_they_are_for() -> None:
    for loss_name in make_loss_oracle.LOSSES:
        totals = merge_metrics(ours(case, loss_name)[2] for case in RECORD)
        counted = ["clipped_high", "clipped_low", "importance_capped"] + ["dual_clipped"] * (loss_name == "ppo")
        assert all(totals[name] > 5 for name in counted), (loss_name, totals)
        assert totals["clipped_high"] + totals["clipped_low"] < totals["tokens"] / 2, (loss_name, totals)
    assert {loss for library, _, loss in BY_LIBRARY if library == "trl"} == set(make_loss_oracle.LOSSES)
    near = ours("near", "gspo")[2]
    assert 0 < near["clipped_high"] + near["clipped_low"] < near["tokens"] / 2, (
        "the paper's clip does not act on some sequences only"
    )
    for case in RECORD:
        advantages = flat(case, "advantages", torch.float64)
        assert advantages.min() < 0 < advantages.max()
        rows = RECORD[case]["rows"]
        assert any(0 in row["mask"][: np.flatnonzero(row["mask"])[-1]] for row in rows if any(row["mask"])), (
            "no hole in any mask"
        )
        assert 0 in lengths_of(case), "no sequence without trained tokens"
        # verl drops the gradient of GSPO beyond exp(10), as the docstring of gspo_loss says.
        assert ours(case, "gspo")[2]["ratio_max"] < np.exp(10)


@pytest.mark.parametrize("case", list(RECORD))
def test_verl_itself_still_says_so(case: str) -> None:
    pytest.importorskip("verl", reason="verl is not installed (verl[verl-core]==0.9.1); compared with its stored numbers only")
    same(make_loss_oracle.ask_verl(RECORD[case]), RECORD[case]["verl"])


@pytest.mark.parametrize("case", list(RECORD))
def test_trl_itself_still_says_so(case: str) -> None:
    pytest.importorskip("trl", reason="TRL is not installed (trl==1.16.0); compared with its stored numbers only")
    same(make_loss_oracle.ask_trl(RECORD[case], RECORD[case]["verl"]["importance"]), RECORD[case]["trl"])


def same(found: Any, stored: Any) -> None:
    if isinstance(stored, dict):
        assert found.keys() == stored.keys()
        for name, value in stored.items():
            same(found[name], value)
    else:
        close(found, stored, 1e-9)
