"""What contestants are held against: only the decode steps, only the matrix products, and what the machine does at best.

The decode steps are ``transformers``' own forward. ASTER computes the same in fewer operations, so that it is no bound for its
sampler; what the sampler does besides, and tools, come on top of that."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from _models import synchronize
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

COPIED_BYTES = {"cpu": 1 << 26, "cuda": 1 << 30}
"""Copied to measure memory bandwidth: more than any cache holds."""
SQUARE = {"cpu": 1024, "cuda": 8192}
"""Side of the square matrices that measure the ceiling of matrix products."""
TRIALS = 10


def _grouped(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, *, scaling: float, **_settings: Any
) -> tuple[Tensor, None]:
    """Attention of one token a row to all that it is given: query (B, H, 1, D), key and value (B, KV, L, D) -> (B, 1, H, D).

    Heads that share keys are taken as the queries of one head, so that keys are neither repeated nor read twice."""
    rows, heads, _, size = query.shape
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], size)
    return F.scaled_dot_product_attention(grouped, key, value, scale=scaling).reshape(rows, 1, heads, size), None


FLOOR_ATTENTION = "decode_floor"
AttentionInterface.register(FLOOR_ATTENTION, _grouped)


class SlabLayer(CacheLayerMixin):
    """Keys and values allocated once; the first rows and positions are used in place."""

    def __init__(self, rows: int, heads: int, capacity: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.keys = torch.zeros((rows, heads, capacity, size), dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.capacity, self.length = capacity, 0
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is left to do."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Put one position of the first rows in its place; returns what they see."""
        rows, end = len(key_states), self.length + 1
        self.keys[:rows, :, self.length : end] = key_states
        self.values[:rows, :, self.length : end] = value_states
        return self.keys[:rows, :, :end], self.values[:rows, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As ``transformers`` asks."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Positions before the step."""
        return self.length

    def get_max_length(self) -> int:
        """Positions there are."""
        return self.capacity


class DecodeFloor:
    """The decode steps of some trajectories, and nothing else.

    An ideal batch: all trajectories decode at once from the first step on, one that is done leaves at no cost, tools answer
    at once and a little at every step, and a step's rows all have the mean length of those that are left, so that nothing is
    masked. The model's plain forward; no prompt or tool result is read, nothing is drawn.
    """

    def __init__(self, model: Any, trajectories: Iterable[tuple[int, int, int]]) -> None:
        """``model`` attends through :data:`FLOOR_ATTENTION`. ``trajectories``: sampled tokens, the prompt's, the results'."""
        ordered = sorted(trajectories, reverse=True)
        self.model, self.rows = model, len(ordered)
        self.device = next(model.parameters()).device
        self.sampled = sum(sampled for sampled, _, _ in ordered)
        self.steps: list[tuple[int, int]] = []
        """Rows of each step, and their mean length before it."""
        for step in range(ordered[0][0]):
            left = [prompt + step + results * step / sampled for sampled, prompt, results in ordered if sampled > step]
            self.steps.append((len(left), round(sum(left) / len(left))))
        config = model.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        capacity = max(length for _, length in self.steps) + 1
        shape = (self.rows, config.num_key_value_heads, capacity, size)
        self.layers = [SlabLayer(*shape, model.dtype, self.device) for _ in range(config.num_hidden_layers)]
        self.cache = Cache(layers=self.layers)

    @torch.inference_mode()
    def run(self) -> int:
        """All steps; returns the tokens that they stand for."""
        tokens = torch.zeros((self.rows, 1), dtype=torch.long, device=self.device)
        for rows, length in self.steps:
            for layer in self.layers:
                layer.length = length
            positions = torch.full((rows, 1), length, device=self.device)
            self.model(input_ids=tokens[:rows], position_ids=positions, past_key_values=self.cache, use_cache=True)
        synchronize(self.device)
        return self.sampled

    def bytes_read(self) -> int:
        """Bytes that must come from memory: all weights each step (the embedding as the output layer), and the keys and
        values of each row."""
        weights = sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())
        layer = self.layers[0]
        position = 2 * len(self.layers) * layer.keys[0, :, 0].numel() * layer.keys.element_size()
        return sum(weights + rows * length * position for rows, length in self.steps)


class MatmulFloor:
    """The linear layers' products of a training step, forward and both backward, and nothing else: no attention, no norms, no
    loss, no optimizer. The output layer's are only on the trained tokens."""

    def __init__(self, model: Any, microbatches: list[tuple[int, int]]) -> None:
        """``microbatches``: tokens and trained tokens of each."""
        head = model.get_output_embeddings()
        self.microbatches = microbatches
        self.weights = [(part.weight.detach(), part is head) for part in model.modules() if isinstance(part, nn.Linear)]
        self.device = head.weight.device

    @torch.no_grad()
    def run(self) -> int:
        """All products; returns the tokens."""
        for tokens, trained in self.microbatches:
            for weight, is_head in self.weights:
                rows = trained if is_head else tokens
                inputs, gradient = self._inputs(rows, weight)
                F.linear(inputs, weight)
                gradient @ weight
                gradient.T @ inputs
        synchronize(self.device)
        return sum(tokens for tokens, _ in self.microbatches)

    def _inputs(self, rows: int, weight: Tensor) -> tuple[Tensor, Tensor]:
        outputs, inputs = weight.shape
        return weight.new_empty(rows, inputs).fill_(0.5), weight.new_empty(rows, outputs).fill_(0.5)

    def operations(self) -> int:
        """Floating-point operations of all products."""
        return sum(
            6 * (trained if is_head else tokens) * weight.numel()
            for tokens, trained in self.microbatches
            for weight, is_head in self.weights
        )


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a large copy moves, read and written."""
    source = torch.zeros(COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _best(lambda: target.copy_(source), device)


def matmul_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square product."""
    side = SQUARE[device.type]
    left, right = (torch.rand((side, side), dtype=torch.float32, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _best(lambda: left @ right, device)


def _best(work: Any, device: torch.device) -> float:
    """The least seconds of some trials."""
    seconds = []
    for _ in range(TRIALS):
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds)
