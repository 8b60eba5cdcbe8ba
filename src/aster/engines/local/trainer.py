"""The in-process trainer: packed forward and backward over trajectories, AdamW, checkpoints.

Trajectories are laid side by side in micro-batches of a bounded number of tokens (a longer one is a micro-batch by itself);
each attends to itself only, and nothing is padded. Only hidden states that predict a trained token reach the output layer, and
whole logits never exist at once (:mod:`aster.engines.local.scoring`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aster.algorithms.losses import merge_metrics
from aster.algorithms.tokens import LossTokens
from aster.engines.base import AdamStep, Loss, TrainingSample
from aster.engines.local.attention import PackedLayout
from aster.engines.local.memory import PeakMemory
from aster.engines.local.optimizer import MasterAdamW
from aster.engines.local.scoring import score_tokens

MICROBATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Most tokens of a micro-batch, by device. On a CPU the activations of a small one fit its caches better."""


@dataclass(frozen=True, slots=True)
class Packed:
    """One micro-batch as flat tensors."""

    layout: PackedLayout
    token_ids: Tensor
    """(1, P)"""
    predicting: Tensor
    """(N,) places in the packed row whose hidden state predicts a trained token."""
    targets: Tensor
    """(N,)"""
    weights: Tensor
    """(N,) advantages, or the weights of SFT"""
    old_logprobs: Tensor | None
    """(N,)"""
    sampler_logprobs: Tensor | None
    """(N,)"""
    counts: list[int]
    """Trained tokens of each sample."""


def pack(samples: list[TrainingSample], device: torch.device) -> Packed:
    """Lay samples side by side. ValueError where some of them have old (or sampler) log-probabilities and others have not."""
    predicting: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    old: list[float] = []
    sampled: list[float] = []
    counts: list[int] = []
    offset = 0
    for sample in samples:
        positions = sample.trained_positions
        counts.append(len(positions))
        predicting += [offset + position - 1 for position in positions]
        targets += [sample.token_ids[position] for position in positions]
        weights += sample.trained_weights
        if sample.old_logprobs is not None:
            old += sample.old_logprobs
        if sample.sampler_logprobs is not None:
            sampled += [sample.sampler_logprobs[position] for position in positions]
        offset += len(sample.token_ids)

    def floats(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    whole = sum(counts)
    if len(old) not in (0, whole) or len(sampled) not in (0, whole):
        raise ValueError(
            "either all samples of a batch have old (or sampler) log-probabilities, one a trained token, or none has"
        )
    return Packed(
        layout=PackedLayout([len(sample.token_ids) for sample in samples]),
        token_ids=torch.tensor([[token for sample in samples for token in sample.token_ids]], device=device),
        predicting=torch.tensor(predicting, dtype=torch.long, device=device),
        targets=torch.tensor(targets, dtype=torch.long, device=device),
        weights=floats(weights),
        old_logprobs=floats(old) if old else None,
        sampler_logprobs=floats(sampled) if sampled else None,
        counts=counts,
    )


def microbatches(samples: list[TrainingSample], tokens: int) -> list[list[int]]:
    """Indices of the samples of each micro-batch, in order."""
    batches: list[list[int]] = []
    room = 0
    for index, sample in enumerate(samples):
        length = len(sample.token_ids)
        if not batches or length > room:
            batches.append([])
            room = tokens
        batches[-1].append(index)
        room -= length
    return batches


class LocalTrainer:
    """Trains a model held in this process."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.microbatch_tokens = MICROBATCH_TOKENS.get(self.device.type, MICROBATCH_TOKENS["cpu"])
        self.optimizer = MasterAdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
        self._memory = PeakMemory(self.device)
        self._accumulating = False

    def logprobs(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of each trained token, both (N,); the entropy carries no gradient."""
        hidden = self.model.base_model(
            input_ids=packed.token_ids,
            position_ids=packed.layout.positions().to(self.device),
            use_cache=False,
            layout=packed.layout,
        ).last_hidden_state[0]
        head = self.model.get_output_embeddings()
        return score_tokens(hidden[packed.predicting], head.weight, head.bias, packed.targets)

    @torch.no_grad()
    def forward(self, samples: list[TrainingSample]) -> list[list[float]]:
        """Log-probabilities of the trained tokens of each sample, without gradient."""
        found: list[list[float]] = []
        for indices in microbatches(samples, self.microbatch_tokens):
            packed = pack([samples[index] for index in indices], self.device)
            logprobs, _ = self.logprobs(packed)
            found += [part.tolist() for part in logprobs.split(packed.counts)]
        return found

    def forward_backward(self, samples: list[TrainingSample], loss: Loss) -> dict[str, float]:
        """Add the gradient of the summed loss. The caller leaves out samples without trained tokens or with weights of 0."""
        if not self._accumulating:
            self._memory.restart()
            self._accumulating = True
        parts: list[dict[str, float]] = []
        for indices in microbatches(samples, self.microbatch_tokens):
            packed = pack([samples[index] for index in indices], self.device)
            logprobs, entropy = self.logprobs(packed)
            old = logprobs.detach() if packed.old_logprobs is None else packed.old_logprobs
            sampler = old if packed.sampler_logprobs is None else packed.sampler_logprobs
            value, metrics = loss(LossTokens(logprobs, old, sampler, packed.weights, packed.counts))
            value.backward()
            parts.append({**metrics, "loss": float(value.detach()), "entropy_sum": float(entropy.sum())})
        return merge_metrics(parts)

    def optim_step(self, adam: AdamStep) -> dict[str, float]:
        """One AdamW step on the gradient so far; returns its norm before clipping, and the peak memory (MiB) since the step
        before."""
        norm = self.optimizer.step(adam)
        self._accumulating = False
        return {"grad_norm": norm, "peak_memory_mb": round(self._memory.mebibytes(), 1)}
