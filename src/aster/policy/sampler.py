"""The in-process sampler: continuous batching over any ``transformers`` decoder.

Each step feeds every running sequence its pending tokens: one (the token just sampled), or several (a prompt, or a tool's
response between two turns), all as one flat forward. A sequence keeps its slot of the key-value cache while its tool runs, so
that only the tool's tokens are fed when it comes back. Sequences join and leave between any two steps; more sequences than
slots wait.

The forward runs in a thread of its own, so that tools and graders go on meanwhile. Random numbers belong to (seed, position),
never to the batch; see :func:`uniform`.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aster.policy.attention import causal, causal_mask
from aster.policy.base import Completion, SamplingParams

PREFILL_TOKENS = 8192
"""Most tokens of one flat forward; longer prompts are fed in several steps."""


@dataclass(slots=True)
class Sequence:
    """A trajectory the sampler knows."""

    name: str
    cached: list[int] = field(default_factory=list)
    """Tokens whose keys and values are in its slot."""
    slot: int | None = None
    request: Request | None = None
    """The turn being sampled, or None while its tool runs."""
    opened: bool = False


@dataclass(slots=True)
class Request:
    params: SamplingParams
    pending: list[int]
    """Tokens to feed before the next one can be sampled; until it is admitted, the whole sequence."""
    future: asyncio.Future[Completion]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    admitted: bool = False
    """True once it takes part in steps."""


class KeyValueCache:
    """Keys and values of all slots, allocated once: per layer (slots, KV heads, capacity, D)."""

    def __init__(self, config: Any, slots: int, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        heads = config.num_key_value_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (slots, heads, capacity, size)
        layers = range(config.num_hidden_layers)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.slots, self.capacity = slots, capacity

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` positions of a slot to another."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :length] = tensor[source, :, :length]


class DecodeLayout:
    """One step: which slot and position each of the N flat tokens has.

    Sequences that feed one token are done together, as one batched product over all used slots: slots are kept without gaps,
    so that the cache is read in place. The others (a prompt, a tool's response) are done one by one.
    """

    def __init__(self, cache: KeyValueCache, fed: list[tuple[int, int, int]], used: int, device: torch.device) -> None:
        """``fed`` has (slot, first position, tokens) for each sequence, in the order of the flat row."""
        self.cache, self.used = cache, used
        slots = [slot for slot, _, tokens in fed for _ in range(tokens)]
        self.positions = torch.tensor([p + i for _, p, n in fed for i in range(n)], device=device)
        heads = cache.keys[0].shape[1]
        first = (torch.tensor(slots, device=device) * heads)[None, :] + torch.arange(heads, device=device)[:, None]
        self.places = (first * cache.capacity + self.positions).flatten()
        """(KV heads * N,): where the new keys and values go, in a layer's cache as rows of D."""
        singles: list[int] = []
        self.longer: list[tuple[slice, int, int, Tensor | None]] = []
        """Flat tokens, slot, length with them, and mask of each sequence that feeds several."""
        last = [0] * used
        offset = 0
        for slot, position, tokens in fed:
            if tokens == 1:
                singles.append(offset)
                last[slot] = position
            else:
                end = position + tokens
                self.longer.append((slice(offset, offset + tokens), slot, end, causal_mask(tokens, end, device)))
            offset += tokens
        self.in_order = singles == list(range(used)) and slots == singles
        """Every used slot feeds one token, in order: queries need not be put in place."""
        self.singles = torch.tensor(singles, dtype=torch.long, device=device)
        self.single_slots = torch.tensor([slots[index] for index in singles], dtype=torch.long, device=device)
        # Slots that feed nothing now see position 0 alone; their output is not read.
        self.length = max(last) + 1
        allowed = torch.arange(self.length, device=device) <= torch.tensor(last, device=device)[:, None]
        self.bias = torch.zeros(allowed.shape, dtype=cache.keys[0].dtype, device=device).masked_fill_(~allowed, float("-inf"))
        self.bias = self.bias[:, None, None, :]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """See ``attention.Layout``. Writes the new keys and values first."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        size = query.shape[2]
        keys.view(-1, size).index_copy_(0, self.places, key.reshape(-1, size))
        values.view(-1, size).index_copy_(0, self.places, value.reshape(-1, size))
        if self.in_order:
            return self._batched(query.transpose(0, 1), keys, values, scaling).transpose(0, 1)
        output = torch.empty_like(query)
        if len(self.singles):
            placed = query.new_zeros(self.used, query.shape[0], size)
            placed[self.single_slots] = query[:, self.singles].transpose(0, 1)
            output[:, self.singles] = self._batched(placed, keys, values, scaling)[self.single_slots].transpose(0, 1)
        for flat, slot, end, mask in self.longer:
            output[:, flat] = causal(query[:, flat], keys[slot, :, :end], values[slot, :, :end], scaling, mask)
        return output

    def _batched(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """One query a slot, (used, H, D). Heads that share keys are taken as the queries of one head, so that keys are read
        once and in place."""
        heads, size = query.shape[1:]
        kv_heads = keys.shape[1]
        grouped = query.reshape(self.used, kv_heads, heads // kv_heads, size)
        seen = (slice(self.used), slice(None), slice(self.length))
        mixed = F.scaled_dot_product_attention(grouped, keys[seen], values[seen], attn_mask=self.bias, scale=scaling)
        return mixed.reshape(self.used, heads, size)


def uniform(seeds: list[int], positions: list[int]) -> np.ndarray:
    """One number in [0, 1) per row from (seed, position) alone: SplitMix64 (Steele et al. 2014), 53 bits."""
    with np.errstate(over="ignore"):
        x = np.array(seeds, dtype=np.uint64) + np.array(positions, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def choose(logits: Tensor, requests: list[Request], positions: list[int]) -> tuple[list[int], list[float]]:
    """Draw one token a row from logits (R, V); returns the tokens and their untempered log-probabilities."""
    logits = logits.float()
    temperature = torch.tensor([r.params.temperature for r in requests], device=logits.device)
    scaled = logits / temperature.clamp_min(1e-6)[:, None]
    probabilities = F.softmax(scaled, -1, dtype=torch.float64)
    top_p = torch.tensor([r.params.top_p for r in requests], dtype=torch.float64, device=logits.device)
    if bool((top_p < 1).any()):
        # Nucleus sampling (Holtzman et al. 2020): drop what comes after the mass before it has reached top_p.
        ordered, order = probabilities.sort(-1, descending=True)
        dropped = (ordered.cumsum(-1) - ordered) >= top_p[:, None]
        dropped[:, 0] = False
        probabilities = torch.zeros_like(probabilities).scatter_(-1, order, ordered.masked_fill(dropped, 0.0))
    cumulative = probabilities.cumsum(-1)
    draws = torch.from_numpy(uniform([r.params.seed for r in requests], positions)).to(logits.device)
    tokens = torch.searchsorted(cumulative, (draws * cumulative[:, -1])[:, None], right=True)[:, 0]
    tokens = torch.where(temperature == 0, logits.argmax(-1), tokens.clamp_max(logits.shape[-1] - 1))
    logprobs = logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
    return tokens.tolist(), logprobs.tolist()


class LocalSampler:
    """Samples turns from a model held in this process. One event loop at a time may use it."""

    def __init__(self, model: Any, slots: int, capacity: int, deterministic: bool, pool: ThreadPoolExecutor) -> None:
        """``capacity`` is the longest sequence in tokens; the cache holds ``slots * capacity`` tokens."""
        self.model, self.pool, self.deterministic = model, pool, deterministic
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self.cache = KeyValueCache(model.config, slots, capacity, self.dtype, self.device)
        self.holders: list[Sequence] = []
        """``holders[slot]`` is the sequence in a slot; without gaps."""
        self.sequences: dict[str, Sequence] = {}
        self.incoming: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.leaving: list[Sequence] = []
        self.changed = asyncio.Event()
        self.going = asyncio.Event()
        self.going.set()
        self.stepping = asyncio.Lock()
        self.runner: asyncio.Task[None] | None = None

    # -- what the rollout calls, on the event loop

    def open(self, sequence: str) -> None:
        """Announce a trajectory."""
        self.sequences[sequence] = Sequence(sequence, opened=True)

    async def sample(self, token_ids: list[int], params: SamplingParams) -> Completion:
        """Sample one turn. Raises ValueError where the sequence would not fit in a slot."""
        if len(token_ids) + params.max_tokens > self.cache.capacity:
            raise ValueError(
                f"{len(token_ids)} tokens and a turn of {params.max_tokens} do not fit in {self.cache.capacity} cached tokens"
            )
        if not token_ids or params.max_tokens < 1:
            raise ValueError("a turn needs at least one token before it and room for one of its own")
        sequence = self.sequences.setdefault(params.sequence, Sequence(params.sequence))
        if sequence.request is not None:
            raise ValueError(f"a turn of {params.sequence} is being sampled already")
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        request = sequence.request = Request(params, list(token_ids), future)
        self.incoming.append(sequence)
        if self.runner is None or self.runner.done():
            # An event belongs to the loop that waited for it first; this may be a new loop.
            self.changed, self.stepping = asyncio.Event(), asyncio.Lock()
            self.runner = asyncio.create_task(self._run())
        self.changed.set()
        try:
            return await future
        finally:
            if future.cancelled() and sequence.request is request:
                sequence.request = None
                self.changed.set()

    def release(self, sequence: str) -> None:
        """Forget a trajectory."""
        known = self.sequences.pop(sequence, None)
        if known is not None:
            self.leaving.append(known)
            self.changed.set()

    async def pause(self) -> None:
        """Sample nothing until :meth:`resume`; returns when no step is being computed. Turns under way wait."""
        self.going.clear()
        async with self.stepping:
            pass

    def resume(self, *, changed: bool) -> None:
        """Go on after :meth:`pause`. If the weights have ``changed``, every cache is dropped: a turn under way feeds its tokens
        again, so that its next ones are the new weights' alone."""
        if changed:
            for sequence in self.sequences.values():
                request = sequence.request
                if request is not None and request.admitted:
                    request.pending[:0] = sequence.cached
                sequence.cached.clear()
        self.going.set()

    # -- the loop

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self.going.wait()
                outside = self.deterministic and any(s.opened and s.request is None for s in self.sequences.values())
                if outside:
                    # Nothing is settled meanwhile: who gets which slot must not depend on who comes back first.
                    self.changed.clear()
                    await self.changed.wait()
                    continue
                self._settle()
                running = [(s, s.request) for s in self.holders if s.request is not None]
                if not running:
                    # Whoever waits would have a slot now: an idle sequence gives way.
                    return
                async with self.stepping:
                    finished = await loop.run_in_executor(self.pool, self._step, running)
                for request, completion in finished:
                    if not request.future.done():
                        request.future.set_result(completion)
                # Let the awakened trajectories parse, call tools and come back before the next step.
                await asyncio.sleep(0)
        except Exception as error:  # noqa: BLE001 - whatever the engine raises goes to those who wait for it
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """An engine error reaches every trajectory that waits for it; the next one starts anew."""
        for sequence in [*self.sequences.values(), *self.leaving]:
            request, sequence.request, sequence.slot = sequence.request, None, None
            sequence.cached.clear()
            if request is not None and not request.future.done():
                request.future.set_exception(RuntimeError(f"the sampler failed: {error!r}"))
        self.holders, self.incoming, self.waiting, self.leaving = [], [], [], []

    def _settle(self) -> None:
        """Let sequences out of and into slots."""
        if self.deterministic:
            self.leaving.sort(key=lambda s: s.name)
            self.incoming.sort(key=lambda s: s.name)
        for sequence in self.leaving:
            self._vacate(sequence)
        left, self.leaving = {id(s) for s in self.leaving}, []
        self.waiting = [s for s in [*self.waiting, *self.incoming] if id(s) not in left and s.request is not None]
        self.incoming = []
        still: list[Sequence] = []
        for sequence in self.waiting:
            if sequence.slot is None and len(self.holders) == self.cache.slots and not self._evict():
                still.append(sequence)
                continue
            if sequence.slot is None:
                sequence.cached.clear()
                sequence.slot = len(self.holders)
                self.holders.append(sequence)
            request = sequence.request
            if request is not None and not request.admitted:
                request.admitted = True
                shared = _shared(sequence.cached, request.pending)
                del sequence.cached[shared:], request.pending[:shared]
        self.waiting = still

    def _evict(self) -> bool:
        """Free a slot of a sequence whose tool is running, the one with the least to feed again."""
        idle = [s for s in self.holders if s.request is None]
        if not idle:
            return False
        victim = min(idle, key=lambda s: len(s.cached))
        self._vacate(victim)
        victim.cached.clear()
        return True

    def _vacate(self, sequence: Sequence) -> None:
        """Free a slot and move the last one into the gap."""
        if sequence.slot is None:
            return
        last = self.holders.pop()
        if last is not sequence:
            assert last.slot is not None
            self.cache.move(last.slot, sequence.slot, len(last.cached))
            self.holders[sequence.slot] = last
            last.slot = sequence.slot
        sequence.slot = None

    # -- one step, in the sampler's thread

    @torch.inference_mode()
    def _step(self, running: list[tuple[Sequence, Request]]) -> list[tuple[Request, Completion]]:
        fed: list[tuple[int, int, int]] = []
        flat: list[int] = []
        ready: list[tuple[Sequence, Request, int]] = []
        room = max(PREFILL_TOKENS, len(running))
        for index, (sequence, request) in enumerate(running):
            slot = sequence.slot
            assert slot is not None
            # Leave one token of room for each sequence behind this one.
            tokens = request.pending[: max(1, room - len(flat) - (len(running) - index - 1))]
            del request.pending[: len(tokens)]
            fed.append((slot, len(sequence.cached), len(tokens)))
            flat += tokens
            sequence.cached += tokens
            if not request.pending:
                ready.append((sequence, request, len(flat) - 1))
        layout = DecodeLayout(self.cache, fed, len(self.holders), self.device)
        hidden = self.model.base_model(
            input_ids=torch.tensor([flat], device=self.device),
            position_ids=layout.positions.unsqueeze(0),
            use_cache=False,
            layout=layout,
        ).last_hidden_state[0]
        if not ready:
            return []
        logits = self.model.get_output_embeddings()(hidden[torch.tensor([i for _, _, i in ready], device=self.device)])
        positions = [len(sequence.cached) for sequence, _, _ in ready]
        tokens_drawn, logprobs = choose(logits, [request for _, request, _ in ready], positions)
        finished: list[tuple[Request, Completion]] = []
        for (sequence, request, _), token, logprob in zip(ready, tokens_drawn, logprobs, strict=True):
            request.token_ids.append(token)
            request.logprobs.append(logprob)
            stopped = token in request.params.stop_token_ids
            if stopped or len(request.token_ids) == request.params.max_tokens:
                if sequence.request is request:
                    sequence.request = None
                finished.append((request, Completion(request.token_ids, request.logprobs, stopped)))
            else:
                request.pending.append(token)
        return finished


def _shared(cached: list[int], token_ids: list[int]) -> int:
    """How many leading tokens are cached already. The last one never counts: something has to be fed."""
    shared = 0
    for ours, theirs in zip(cached, token_ids[:-1], strict=False):
        if ours != theirs:
            break
        shared += 1
    return shared
