"""Write ``data/loss_oracle.json``: random ragged batches, and what verl and TRL compute from them for the three policy losses.

Every token has an advantage of its own. The numbers come from the libraries' own code:

- verl 0.9.1: the registered policy losses ``vanilla``, ``gspo`` and ``cispo``, aggregated as ``token-mean``,
  ``compute_rollout_correction_weights`` and ``kl_penalty``
- TRL 1.16.0: ``GRPOTrainer._compute_loss`` of a real trainer, with ``loss_type`` ``dapo`` (and ``importance_sampling_level``
  ``sequence`` for GSPO) or ``cispo``. The trainer gets the batch's log-probabilities in the place of its model's, and verl's
  importance weights in the place of vLLM's.

Both divide by the batch's trained tokens, so that no number is rescaled. To write the file again, in an environment that has
torch, ``verl[verl-core]==0.9.1`` and ``trl==1.16.0`` (no GPU is needed):

    python tests/algorithms/make_loss_oracle.py

``test_loss_oracle.py`` compares ASTER with the file everywhere, and the file with a library where that is installed.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ORACLE = Path(__file__).parent / "data" / "loss_oracle.json"

DEFAULTS: dict[str, Any] = {
    "importance_cap": 2.0,
    "ppo": {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 10.0},
    "gspo": {"clip_low": 3e-4, "clip_high": 4e-4},
    "cispo": {"clip_low": 1.0, "clip_high": 4.0},
}
OTHERS: dict[str, Any] = {
    "importance_cap": 1.5,
    "ppo": {"clip_low": 0.1, "clip_high": 0.3, "dual_clip": 3.0},
    "gspo": {"clip_low": 0.05, "clip_high": 0.1},
    "cispo": {"clip_low": 0.25, "clip_high": 0.5},
}
LOSSES = ("ppo", "gspo", "cispo")

Spread = tuple[float, float]
Case = tuple[str, int, dict[str, Any], Spread, Spread, float, bool]
"""Name, seed, settings, spread of new - old by sequence and by token, the same of sampler - old, share of tokens with an
outlier, whether the tokens of a sequence have one advantage."""

CASES: list[Case] = [
    ("on_policy", 1, DEFAULTS, (0.0, 0.0), (0.0, 0.05), 0.0, False),
    ("near", 2, DEFAULTS, (4e-4, 2e-3), (0.0, 0.02), 0.0, False),
    ("far", 7, DEFAULTS, (0.2, 0.4), (0.1, 0.3), 0.3, False),
    # Here TRL's gradient of GSPO, which flows through the sequence's mean, is the same token by token.
    ("even_sequences", 4, DEFAULTS, (0.3, 0.3), (0.8, 0.0), 0.0, True),
    ("other_settings", 5, OTHERS, (0.15, 0.3), (0.2, 0.3), 0.2, False),
]


def make_batch(
    seed: int, settings: dict[str, Any], drift: Spread, mismatch: Spread, outliers: float, one_advantage: bool
) -> dict[str, Any]:
    """A ragged batch: one row a sequence, of its own length, with untrained tokens (mask 0) at random places. The last row has
    no trained token."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for length in (1, 14, 3, 9, 20, 6, 12, 4):
        mask = (rng.random(length) < 0.75).astype(int)
        mask[0] = 1
        if len(rows) == 7:
            mask[:] = 0
        # Rounded before the shift of a sequence is added, which then stays the same for all its tokens.
        old = np.minimum(-rng.exponential(1.0, length), -1e-4).round(6)
        # Far beyond the bounds of clip, cap and exponent in both directions.
        shock = np.where(rng.random(length) < outliers, rng.choice([-25.0, -3.0, 2.0, 3.0, 4.0, 25.0], length), 0.0)
        advantages = rng.standard_normal(length) * (rng.random(length) < 0.9)
        if one_advantage:
            advantages[:] = rng.standard_normal()
        shift, sampler_shift = (round(spread * rng.standard_normal(), 6) for spread in (drift[0], mismatch[0]))
        new = old + shift + drift[1] * rng.standard_normal(length) + shock
        sampler = old + sampler_shift + mismatch[1] * rng.standard_normal(length) + rng.permutation(shock)
        values = {"new": new, "old": old, "sampler": sampler, "advantages": advantages}
        rows.append({"mask": mask.tolist()} | {name: [round(float(v), 6) for v in each] for name, each in values.items()})
    return {"settings": settings, "one_advantage": one_advantage, "rows": rows}


def padded(batch: dict[str, Any], name: str) -> Any:
    """A value of all rows as a tensor (rows, longest), float64."""
    import torch

    longest = max(len(row["mask"]) for row in batch["rows"])
    return torch.tensor([row[name] + [0.0] * (longest - len(row[name])) for row in batch["rows"]], dtype=torch.float64)


def ask_verl(batch: dict[str, Any]) -> dict[str, Any]:
    """What verl computes from a batch. Lists over tokens hold the trained tokens only, row after row."""
    from verl.trainer.ppo import core_algos
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights
    from verl.workers.config import ActorConfig

    mask, new, old, sampler, advantages = (padded(batch, name) for name in ("mask", "new", "old", "sampler", "advantages"))
    trained, settings = mask.bool(), batch["settings"]
    weights, _ = compute_rollout_correction_weights(
        old - sampler, mask, rollout_is="token", rollout_is_threshold=settings["importance_cap"]
    )
    found: dict[str, Any] = {
        "importance": _numbers(weights[trained]),
        # verl bounds each token's estimate by 10.
        "kl": _numbers(core_algos.kl_penalty(old, new, "k3")[trained]),
    }
    for loss_name in LOSSES:
        clips = settings[loss_name]
        config = ActorConfig(
            strategy="fsdp",
            rollout_n=2,
            use_dynamic_bsz=True,
            clip_ratio_low=clips["clip_low"],
            clip_ratio_high=clips["clip_high"],
            clip_ratio_c=clips.get("dual_clip", 3.0),
        )
        config.global_batch_info.update(dp_size=1, batch_num_tokens=int(mask.sum()))
        leaf = new.clone().requires_grad_()
        function = core_algos.get_policy_loss_fn("vanilla" if loss_name == "ppo" else loss_name)
        loss, metrics = function(old, leaf, advantages, mask, "token-mean", config, weights)
        loss.backward()
        assert not leaf.grad[~trained].any(), "verl gives untrained tokens a gradient"
        found[loss_name] = {
            "loss": loss.item(),
            "gradient": _numbers(leaf.grad[trained]),
            "clipped": metrics["actor/pg_clipfrac"],
            "dual_clipped": metrics["actor/pg_clipfrac_lower"],
        }
    return found


def ask_trl(batch: dict[str, Any], importance: list[float]) -> dict[str, Any]:
    """What TRL computes from a batch and the importance weights of its trained tokens; as for :func:`ask_verl`.

    TRL bounds CISPO's ratio only from above. Where the settings bound it from below, CISPO is left out."""
    import torch

    mask, new, old, advantages = (padded(batch, name) for name in ("mask", "new", "old", "advantages"))
    trained = mask.bool()
    weights = torch.ones_like(new)
    weights[trained] = torch.tensor(importance, dtype=torch.float64)
    longest = mask.shape[1]
    completion = torch.tensor([[1.0] * len(row["mask"]) + [0.0] * (longest - len(row["mask"])) for row in batch["rows"]])
    ids = torch.zeros_like(mask, dtype=torch.long)
    found: dict[str, Any] = {}
    for loss_name in LOSSES:
        clips = batch["settings"][loss_name]
        if loss_name == "cispo" and clips["clip_low"] < 1.0:
            continue
        leaf = new.clone().requires_grad_()
        trainer = _trl_trainer(loss_name, clips, leaf)
        loss = trainer._compute_loss(
            None,
            {
                "prompt_ids": ids[:, :1],
                "prompt_mask": torch.ones_like(ids[:, :1]),
                "completion_ids": ids,
                "completion_mask": completion,
                "tool_mask": mask.float(),
                "advantages": advantages,
                "old_per_token_logps": old,
                "importance_sampling_ratio": weights,
                "num_items_in_batch": mask.sum(),
            },
        )
        loss.backward()
        assert leaf.grad is not None
        assert not leaf.grad[~trained].any(), "TRL gives untrained tokens a gradient"
        found[loss_name] = {"loss": loss.item(), "gradient": _numbers(leaf.grad[trained])}
        if loss_name != "cispo":
            metrics = trainer._metrics["train"]
            found[loss_name] |= {f"clipped_{side}": metrics[f"clip_ratio/{side}_mean"][-1] for side in ("low", "high")}
    return found


def _trl_trainer(loss_name: str, clips: dict[str, float], logprobs: Any) -> Any:
    """A trainer of TRL's that is set to one of the losses and scores every batch with the given log-probabilities."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    class GivenLogprobs(GRPOTrainer):
        def _get_per_token_logps_and_entropies(self, *_: Any, **__: Any) -> tuple[Any, Any, None]:
            return logprobs, torch.zeros(logprobs.shape), None

    words = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1, "b": 2}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="b")
    shape = {"hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    # TRL's epsilon_high is for CISPO the bound itself.
    high = 1.0 + clips["clip_high"] if loss_name == "cispo" else clips["clip_high"]
    with tempfile.TemporaryDirectory() as folder:
        trainer = GivenLogprobs(
            model=LlamaForCausalLM(LlamaConfig(vocab_size=3, **shape)),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=GRPOConfig(
                output_dir=folder,
                report_to=[],
                use_cpu=True,
                bf16=False,
                num_generations=2,
                per_device_train_batch_size=2,
                steps_per_generation=1,
                gradient_accumulation_steps=1,
                beta=0.0,
                loss_type="cispo" if loss_name == "cispo" else "dapo",
                importance_sampling_level="sequence" if loss_name == "gspo" else "token",
                epsilon=clips["clip_low"],
                epsilon_high=high,
                delta=clips.get("dual_clip"),
            ),
            train_dataset=Dataset.from_list([{"prompt": "a"}]),
            processing_class=tokenizer,
        )
    trainer.current_gradient_accumulation_steps = 1
    # Only this makes the trainer apply importance weights. It samples nothing here.
    trainer.use_vllm = True
    return trainer


def _numbers(tensor: Any) -> list[float]:
    return [float(f"{value:.12g}") for value in tensor.tolist()]


def main() -> None:
    """Write the file."""
    record = {}
    for case in CASES:
        batch = make_batch(*case[1:])
        verl = ask_verl(batch)
        record[case[0]] = batch | {"verl": verl, "trl": ask_trl(batch, verl["importance"])}
    ORACLE.write_text(json.dumps(record, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
