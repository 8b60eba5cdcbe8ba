"""Decoding steps as CUDA graphs. What a graph captures is also run, on a processor, by test_schedules.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen3Config, Qwen3ForCausalLM

from aster.engines import Completion, SamplingParams
from aster.engines.local.attention import IMPLEMENTATION
from aster.engines.local.cache import KeyValueCache
from aster.engines.local.cpu.decoder import Decoder
from aster.engines.local.graphs import DecodeGraphs, rounded, rounded_slots
from aster.engines.local.sampler import LocalSampler

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


@given(st.integers(1, 1 << 20))
def test_lengths_are_rounded_up_by_little_to_few(length: int) -> None:
    assert length <= rounded(length) <= max(256, length * 9 / 8)
    assert rounded(rounded(length)) == rounded(length)
    assert rounded(length) % 16 == 0, "what fused attention wants of a mask"


def make_model(device: str, rotation: str = "default") -> Qwen3ForCausalLM:
    torch.manual_seed(3)
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        rope_parameters={"rope_type": rotation, "rope_theta": 10000.0, "factor": 2.0},
        initializer_range=0.5,
        attn_implementation=IMPLEMENTATION,
    )
    return Qwen3ForCausalLM(config).eval().to(device)


def test_a_processor_has_no_graphs() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert LocalSampler(make_model("cpu"), 4, 64, False, pool).graphs is None


@needs_gpu
def test_graphs_change_no_token() -> None:
    model = make_model("cuda")

    async def turns(sampler: LocalSampler) -> list[list[int]]:
        prompts = [[number + 1, 5, 7] for number in range(6)]
        params = [SamplingParams(400, 0.0, 1.0, 0, (), str(number)) for number in range(6)]
        done = await asyncio.gather(*map(sampler.sample, prompts, params))
        return [completion.token_ids for completion in done]

    with ThreadPoolExecutor(1) as pool:
        captured, plain = (LocalSampler(model, 6, 512, False, pool) for _ in range(2))
        plain.graphs = None
        assert asyncio.run(turns(captured)) == asyncio.run(turns(plain))
        assert captured.graphs is not None
        assert {length for _, length in captured.graphs.steps} == {256, 288, 320, 352, 384, 416}
        # New weights in place are what a graph computes with.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.05)
        for sampler in (captured, plain):
            sampler.resume(changed=True)
        assert captured.graphs.steps
        assert asyncio.run(turns(captured)) == asyncio.run(turns(plain))


@needs_gpu
def test_rotations_that_move_are_not_captured(capfd: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert LocalSampler(make_model("cuda", "dynamic"), 4, 64, False, pool).graphs is None
    assert "dynamic" in capfd.readouterr().err


class Capture(TorchDispatchMode):
    """Stands for a graph on a processor: the operations on tensors, and the memory that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        """Compute again, with what is in that memory now."""
        for func, args, kwargs, result in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class CapturedHere(DecodeGraphs):
    def __init__(self, decoder: Decoder, cache: KeyValueCache) -> None:
        super().__init__(decoder, cache)
        self.capturing = True

    def _capture(self, compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        capture = Capture()
        with capture:
            hidden = compute()

        def replay() -> torch.Tensor:
            capture.replay()
            return hidden

        return replay


def test_what_is_captured_is_computed_with_the_weights_of_now() -> None:
    model = make_model("cpu")

    def turn(sampler: LocalSampler) -> Completion:
        return asyncio.run(sampler.sample([1, 2, 3], SamplingParams(20, 0.0, 1.0, 0, (), "a")))

    with ThreadPoolExecutor(1) as pool:
        captured, plain = (LocalSampler(model, 2, 64, False, pool) for _ in range(2))
        captured.cache.kernels = None
        graphs = captured.graphs = CapturedHere(captured.decoder, captured.cache)
        before = turn(captured)
        assert before.token_ids == turn(plain).token_ids
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.5)
        for sampler in (captured, plain):
            sampler.resume(changed=True)
        (first,) = graphs.steps.values()
        after = turn(captured)
        assert list(graphs.steps.values()) == [first], "captured once"
        assert after.token_ids == turn(plain).token_ids != before.token_ids
        assert after.logprobs == pytest.approx(turn(plain).logprobs, abs=1e-4)


def test_without_memory_for_a_graph_steps_are_run_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    class NoMemory(CapturedHere):
        def _capture(self, compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
            if self.steps:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.\nSee the documentation.")
            return super()._capture(compute)

    model = make_model("cpu")

    def turn(sampler: LocalSampler) -> list[int]:
        return asyncio.run(sampler.sample([1, 2, 3], SamplingParams(400, 0.0, 1.0, 0, (), "a"))).token_ids

    with ThreadPoolExecutor(1) as pool:
        captured, plain = (LocalSampler(model, 2, 512, False, pool) for _ in range(2))
        captured.cache.kernels = None
        captured.graphs = NoMemory(captured.decoder, captured.cache)
        assert turn(captured) == turn(plain)
    assert capfd.readouterr().err.count("without CUDA graphs from here on: CUDA out of memory") == 1


@given(st.integers(1, 10_000))
def test_slots_are_rounded_up_to_few(count: int) -> None:
    assert count <= rounded_slots(count) <= max(2 * count - 1, 1)
    assert rounded_slots(count) < count + 16
    assert rounded_slots(rounded_slots(count)) == rounded_slots(count)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_replaced_weights_are_captured_again(device: str) -> None:
    model = make_model(device)
    with ThreadPoolExecutor(1) as pool:
        sampler = LocalSampler(model, 4, 64, False, pool)
        sampler.cache.kernels = None
        graphs = sampler.graphs = DecodeGraphs(sampler.decoder, sampler.cache)

        def turn() -> list[int]:
            return asyncio.run(sampler.sample([1, 2, 3], SamplingParams(9, 0.0, 1.0, 0, (), "a"))).token_ids

        before = turn()
        first = dict(graphs.steps)
        sampler.resume(changed=True)
        assert graphs.steps == first
        down = model.base_model.layers[0].mlp.down_proj
        down.weight = torch.nn.Parameter(-down.weight.detach())
        sampler.resume(changed=True)
        assert not graphs.steps
        assert turn() != before
