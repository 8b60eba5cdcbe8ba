"""Write ``data/verl_oracle.json``: random ragged batches and what verl computes from them.

The numbers come from verl's own functions (verl 0.9.1): ``compute_grpo_outcome_advantage``, ``compute_policy_loss_vanilla``
with its token-mean ``agg_loss``, ``compute_rollout_correction_weights`` and ``kl_penalty``. To write the file again, in an
environment that has torch and ``verl[verl-core]==0.9.1`` (no GPU is needed):

    python tests/algorithms/make_oracle.py

``test_oracle.py`` compares ASTER with the file everywhere, and the file with verl where verl is installed.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

ORACLE = Path(__file__).parent / "data" / "verl_oracle.json"

PAPER = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 10.0, "importance_cap": 2.0, "normalize_std": True}

Case = tuple[str, int, dict[str, Any], list[list[float]], float, float, float]
"""Name, seed, settings, rewards by group, spread of new - old, spread of old - sampler, share of tokens with an outlier."""

# Rewards that are all equal are of a kind whose mean is exact: for six of 0.1 verl has advantages of 1e-11 and ASTER has zeros.
CASES: list[Case] = [
    ("on_policy", 1, PAPER, [[1, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 1]], 0.0, 0.05, 0.0),
    ("second_minibatch", 2, PAPER, [[0, 0, 0, 0], [1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 0, 0]], 0.25, 0.05, 0.0),
    ("outliers", 3, PAPER, [[1, 0, 0, 0, 0, 0], [0.5, 0.5, 0.5, 0.5, 0.5, 0.5], [1, 1, 1, 0, 1, 1]], 0.4, 0.3, 0.2),
    (
        "other_settings",
        4,
        {"clip_low": 0.1, "clip_high": 0.3, "dual_clip": 3.0, "importance_cap": 1.5, "normalize_std": False},
        [[1, 0], [0.5, -0.25, 2], [1, 1, 1], [0, 1, 0.7, 0.2, 0.1]],
        0.4,
        0.3,
        0.15,
    ),
]


def make_batch(
    seed: int, settings: dict[str, Any], groups: list[list[float]], drift: float, mismatch: float, outliers: float
) -> dict[str, Any]:
    """A ragged batch: one row a trajectory, of its own length, with tool tokens (mask 0) at random places."""
    rng = np.random.default_rng(seed)
    rows = []
    for group, rewards in enumerate(groups):
        for reward in rewards:
            length = int(rng.integers(3, 25))
            mask = (rng.random(length) < 0.7).astype(int)
            mask[0] = 1
            old = np.minimum(-rng.exponential(1.0, length), -1e-4)
            # Far beyond the bounds of dual clip, cap and exponent in both directions, in tokens of either sign of advantage.
            shock = np.where(rng.random(length) < outliers, rng.choice([-25.0, -3.0, 2.0, 4.0, 25.0], length), 0.0)
            new = old + drift * rng.standard_normal(length) + shock
            sampler = old + mismatch * rng.standard_normal(length) + rng.permutation(shock)
            values = {"new": new, "old": old, "sampler": sampler}
            rows.append({"group": group, "reward": reward, "mask": mask.tolist()} | {k: _rounded(v) for k, v in values.items()})
    return {"settings": settings, "rows": rows}


def ask_verl(batch: dict[str, Any]) -> dict[str, Any]:
    """What verl computes from a batch, in float64. Arrays over tokens hold the trained tokens alone, row after row."""
    import torch
    from verl.trainer.ppo import core_algos
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights
    from verl.workers.config import ActorConfig

    rows, settings = batch["rows"], batch["settings"]
    longest = max(len(row["mask"]) for row in rows)

    def padded(name: str) -> torch.Tensor:
        return torch.tensor([row[name] + [0.0] * (longest - len(row[name])) for row in rows], dtype=torch.float64)

    mask, new, old, sampler = padded("mask"), padded("new"), padded("old"), padded("sampler")
    rewards = torch.zeros_like(mask)
    rewards[:, 0] = torch.tensor([row["reward"] for row in rows], dtype=torch.float64)
    advantages, _ = core_algos.compute_grpo_outcome_advantage(
        rewards,
        mask,
        np.array([row["group"] for row in rows]),
        norm_adv_by_std_in_grpo=settings["normalize_std"],
    )
    weights, _ = compute_rollout_correction_weights(
        old - sampler, mask, rollout_is="token", rollout_is_threshold=settings["importance_cap"]
    )
    config = ActorConfig(
        strategy="fsdp",
        rollout_n=2,
        use_dynamic_bsz=True,
        clip_ratio_low=settings["clip_low"],
        clip_ratio_high=settings["clip_high"],
        clip_ratio_c=settings["dual_clip"],
    )

    def loss_of(part: slice) -> tuple[float, torch.Tensor, dict[str, Any]]:
        # batch_num_tokens makes a part's loss its share of the token mean over the whole batch.
        config.global_batch_info.update(dp_size=1, batch_num_tokens=int(mask.sum()))
        leaf = new[part].clone().requires_grad_()
        loss, metrics = core_algos.compute_policy_loss_vanilla(
            old[part], leaf, advantages[part], mask[part], "token-mean", config, weights[part]
        )
        loss.backward()
        assert leaf.grad is not None
        return loss.item(), leaf.grad, metrics

    loss, gradient, metrics = loss_of(slice(None))
    assert not gradient[mask == 0].any(), "verl gives tool tokens a gradient"
    cuts = sorted({0, 1, len(rows) // 2, len(rows)})
    trained = mask.bool()
    return {
        "advantages": advantages[:, 0].tolist(),
        "importance": weights[trained].tolist(),
        "loss": loss,
        "gradient": gradient[trained].tolist(),
        "clipped_fraction": metrics["actor/pg_clipfrac"],
        "dual_clipped_fraction": metrics["actor/pg_clipfrac_lower"],
        # verl bounds each token's estimate by 10.
        "kl": core_algos.kl_penalty(old, new, "k3")[trained].tolist(),
        "cuts": cuts,
        "part_losses": [loss_of(slice(a, b))[0] for a, b in itertools.pairwise(cuts)],
    }


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]


def main() -> None:
    """Write the file."""
    record = {}
    for case in CASES:
        name, batch = case[0], make_batch(*case[1:])
        record[name] = batch | {"verl": ask_verl(batch)}
    ORACLE.parent.mkdir(exist_ok=True)
    ORACLE.write_text(json.dumps(record, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
