"""Who takes part in ``train_step.py``, and the batch they train on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from _models import Subject, open_ours, peer_of, synchronize
from _trl import make_trainer
from torch import Tensor

from aster.algorithms.advantages import group_advantages
from aster.algorithms.grpo import Grpo
from aster.algorithms.losses import clipped_policy_loss
from aster.engines import AdamStep, TrainingSample
from aster.engines.local.loading import load_model

GROUP = 8
"""Trajectories of one prompt."""
RATE = 1e-6
"""So small that the weights of the contestants stay as good as equal."""
EPS = 1e-4
"""What TRL adds to a group's standard deviation."""
LOSS = Grpo().loss
"""ASTER's settings. Its dual clip and importance cap, which TRL has not, are out of reach on-policy."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Trajectories with their rewards."""

    samples: list[TrainingSample]
    """Scaled by their advantages and the batch's trained tokens."""
    prompts: list[int]
    """Length of each trajectory's prompt."""
    rewards: list[float]
    rows: int
    """Trajectories of a padded micro-batch."""
    folder: str
    """For what TRL writes."""

    @property
    def padded_tokens(self) -> int:
        """Positions in TRL's batch: the longest prompt and the longest completion, for every trajectory."""
        completions = [len(sample.token_ids) - prompt for sample, prompt in zip(self.samples, self.prompts, strict=True)]
        return len(self.samples) * (max(self.prompts) + max(completions))


def make_batch(count: int, longest: int, rows: int, vocabulary: int, folder: str) -> Batch:
    """Trajectories of log-normal length: a prompt, then turns and tool results, with random tokens. Half of a group was right,
    so that none is without a gradient: ASTER leaves those out, and TRL does not."""
    if count % GROUP or count % rows:
        raise SystemExit(f"{count} trajectories are not whole groups of {GROUP} and micro-batches of {rows}")
    rng = random.Random(1)
    drawn: list[tuple[list[int], list[int]]] = []
    prompts = []
    for _ in range(count):
        length = min(longest, max(longest // 12, round(longest / 7 * rng.lognormvariate(0.0, 0.8))))
        prompts.append(min(longest // 16, length // 2))
        mask = [0] * prompts[-1]
        while len(mask) < length:
            mask += [1] * rng.randint(10, 40) + [0] * rng.randint(6, 16)
        drawn.append(([rng.randrange(vocabulary) for _ in range(length)], mask[:length]))
    rewards = [float(index % 2) for index in range(count)]
    advantages = [
        float(a) for start in range(0, count, GROUP) for a in group_advantages(rewards[start : start + GROUP], eps=EPS)
    ]
    trained = sum(sum(mask) for _, mask in drawn)
    samples = [TrainingSample(*pair, advantage / trained) for pair, advantage in zip(drawn, advantages, strict=True)]
    return Batch(samples, prompts, rewards, rows, folder)


class Contestant(Protocol):
    """Trains a model of its own."""

    def loss_and_gradient(self) -> tuple[float, Tensor]:
        """Of the batch, without a step; nothing is left behind."""

    def step(self) -> None:
        """Forward, backward, clip, AdamW."""


def take_gradient(parameters: Iterable[Tensor]) -> Tensor:
    """All gradients as one vector; cleared."""
    taken = []
    for parameter in parameters:
        assert parameter.grad is not None
        taken.append(parameter.grad.flatten().float())
        parameter.grad = None
    return torch.cat(taken)


def load_peer(subject: Subject, checkpointing: bool) -> Any:
    """A model for a peer, which is in training mode if it is to recompute activations, and in evaluation mode else: none of the
    models has dropout."""
    model = peer_of(load_model(subject.source, subject.settings))
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    return model


class Aster:
    """ASTER's local policy."""

    def __init__(self, subject: Subject, batch: Batch, checkpointing: bool) -> None:
        settings = subject.settings.model_copy(update={"gradient_checkpointing": checkpointing})
        self.policy = open_ours(replace(subject, settings=settings))
        self.model, self.samples = self.policy.model, batch.samples

    def loss_and_gradient(self) -> tuple[float, Tensor]:
        """See :class:`Contestant`."""
        loss = asyncio.run(self.policy.forward_backward(self.samples, LOSS))["loss"]
        # Where the weights are bfloat16, the gradients are at their masters.
        return loss, take_gradient(self.policy.trainer.optimizer.masters)

    def step(self) -> None:
        """See :class:`Contestant`."""
        asyncio.run(self._step())

    async def _step(self) -> None:
        await self.policy.forward_backward(self.samples, LOSS)
        await self.policy.optim_step(AdamStep(RATE))
        synchronize(self.model.device)


class Trl:
    """TRL's trainer."""

    def __init__(self, subject: Subject, batch: Batch, checkpointing: bool) -> None:
        self.model = load_peer(subject, checkpointing)
        self.microbatches = len(batch.samples) // batch.rows
        ids = [sample.token_ids for sample in batch.samples]

        def rollout(_prompts: list[Any], _trainer: Any) -> dict[str, Any]:
            return {
                "prompt_ids": [row[:end] for row, end in zip(ids, batch.prompts, strict=True)],
                "completion_ids": [row[end:] for row, end in zip(ids, batch.prompts, strict=True)],
                "logprobs": None,
                "env_mask": [sample.loss_mask[end:] for sample, end in zip(batch.samples, batch.prompts, strict=True)],
            }

        trainer = self.trainer = make_trainer(
            self.model,
            subject.tokenizer,
            batch.folder,
            rows=batch.rows,
            microbatches=self.microbatches,
            group=GROUP,
            rewards=lambda **_: batch.rewards,
            rollout=rollout,
            checkpointing=checkpointing,
            learning_rate=RATE,
        )
        self.model.train()
        trainer.create_optimizer()
        # What its training loop does before the first step.
        trainer.current_gradient_accumulation_steps = self.microbatches
        # Its own batch, and no other: it would roll out again after as many steps.
        trainer._prepare_inputs([{"prompt": [{"role": "user", "content": ""}]} for _ in ids])
        trainer.num_iterations = 1 << 40
        trainer._step = self.microbatches

    def backward(self) -> float:
        """Its training step for each micro-batch; returns the loss."""
        return sum(float(self.trainer.training_step(self.model, None, None)) for _ in range(self.microbatches))

    def loss_and_gradient(self) -> tuple[float, Tensor]:
        """See :class:`Contestant`."""
        return self.backward(), take_gradient(self.model.parameters())

    def step(self) -> None:
        """See :class:`Contestant`."""
        self.backward()
        self.trainer.accelerator.clip_grad_norm_(self.model.parameters(), self.trainer.args.max_grad_norm)
        self.trainer.optimizer.step()
        self.model.zero_grad()
        synchronize(self.model.device)


class Sorted:
    """A plain loop over ``transformers``' forward: sorted by length, padded on the right."""

    def __init__(self, subject: Subject, batch: Batch, checkpointing: bool) -> None:
        self.model = load_peer(subject, checkpointing)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
        ordered = sorted(batch.samples, key=lambda sample: len(sample.token_ids))
        self.parts = [ordered[start : start + batch.rows] for start in range(0, len(ordered), batch.rows)]

    def backward(self) -> float:
        """Add the gradient; returns the loss."""
        whole = 0.0
        for part in self.parts:
            longest = max(len(sample.token_ids) for sample in part)
            tokens = torch.tensor([sample.token_ids + [0] * (longest - len(sample.token_ids)) for sample in part])
            lengths = torch.tensor([len(sample.token_ids) for sample in part])
            mask = (torch.arange(longest) < lengths[:, None]).long()
            positions = [sample.trained_positions for sample in part]
            rows = torch.tensor([row for row, found in enumerate(positions) for _ in found])
            columns = torch.tensor([position for found in positions for position in found])
            scales = torch.tensor([sample.weights for sample, found in zip(part, positions, strict=True) for _ in found])
            device = self.model.device
            tokens, mask, rows, columns, scales = (part.to(device) for part in (tokens, mask, rows, columns, scales))
            hidden = self.model.base_model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
            logits = self.model.get_output_embeddings()(hidden[rows, columns - 1]).float()
            logprobs = logits.gather(-1, tokens[rows, columns][:, None])[:, 0] - logits.logsumexp(-1)
            torch.special.entr(logits.detach().softmax(-1)).sum(-1)  # the entropy, which the others report
            old = logprobs.detach()
            loss, _ = clipped_policy_loss(
                logprobs, old, old, scales, clip_low=0.2, clip_high=0.28, dual_clip=10.0, importance_cap=2.0
            )
            loss.backward()
            whole += float(loss.detach())
        return whole

    def loss_and_gradient(self) -> tuple[float, Tensor]:
        """See :class:`Contestant`."""
        return self.backward(), take_gradient(self.model.parameters())

    def step(self) -> None:
        """See :class:`Contestant`."""
        self.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        synchronize(self.model.device)


CONTESTANTS: dict[str, Callable[[Subject, Batch, bool], Contestant]] = {"aster": Aster, "trl": Trl, "sorted": Sorted}
"""By name, ASTER first."""
