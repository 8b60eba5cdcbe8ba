"""The sampler's fast forward pass on a CPU computes what transformers' does, on weights that stay the model's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PhiConfig, PhiForCausalLM, Qwen2Config, Qwen2ForCausalLM

from aster.config import Policy
from aster.engines.local.adapters import Adapters
from aster.engines.local.attention import IMPLEMENTATION
from aster.engines.local.cache import Chunk, KeyValueCache
from aster.engines.local.cpu import fast_decoder, linear
from aster.engines.local.cpu.decoder import CpuDecoder
from aster.engines.local.cpu.linear import has_packed_products, join_parameters
from aster.engines.local.decoder import Decoder
from aster.engines.local.loading import load_model
from tests.engines.models import oracle, random_ids, recipe_for
from tests.refusals import refused


@pytest.fixture(scope="session")
def qwen2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with biases on query, key and value."""
    folder = tmp_path_factory.mktemp("qwen2") / "model"
    config = Qwen2Config(
        vocab_size=300, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(2)
    model = Qwen2ForCausalLM(config)
    for layer in model.model.layers:
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            torch.nn.init.normal_(part.bias)
    model.save_pretrained(folder)
    return folder


def cache_for(model: Any) -> KeyValueCache:
    return KeyValueCache(model.config, 8, 64, next(model.parameters()).dtype, torch.device("cpu"))


def fast(model: Any) -> CpuDecoder:
    decoder = fast_decoder(model, cache_for(model))
    assert isinstance(decoder, CpuDecoder)
    decoder.refresh_weights()
    return decoder


def plain(model: Any) -> Decoder:
    return Decoder(model, cache_for(model))


def hidden_states(decoder: Decoder) -> torch.Tensor:
    """Of eight sequences: prompts, one of them long, then one token of some and nine of another, of all, of many, of a few, of
    one."""
    lengths = [20, 5, 41, 7, 7, 12, 1, 28]
    steps = [sorted((Chunk(slot, 0, length) for slot, length in enumerate(lengths)), key=lambda chunk: chunk.length)]
    for part in (
        [(0, 1), (2, 1), (1, 9)],
        [(slot, 1) for slot in range(8)],
        [(s, 1) for s in (0, 1, 3, 4, 6, 7)],
        [(5, 1), (2, 1)],
        [(7, 1)],
    ):
        steps.append([Chunk(slot, lengths[slot], tokens) for slot, tokens in part])
        for slot, tokens in part:
            lengths[slot] += tokens
    outputs = []
    with torch.inference_mode():
        for number, chunks in enumerate(steps):
            ids = torch.tensor(random_ids(number, sum(chunk.length for chunk in chunks)))
            outputs.append(decoder(ids, chunks))
    return torch.cat(outputs)


@pytest.fixture(params=["lab", "llama", "qwen2"])
def model(request: pytest.FixtureRequest) -> Any:
    return load_model(request.getfixturevalue(f"{request.param}_folder"), recipe_for(Path()).model)


@pytest.mark.parametrize("packed_from", [1, 1 << 18])
def test_it_equals_the_models_own_forward(model: Any, packed_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "MIN_PACKED_ELEMENTS", packed_from)
    decoder = fast(model)
    assert decoder.layers
    torch.testing.assert_close(hidden_states(decoder), hidden_states(plain(model)), atol=1e-4, rtol=1e-4)


def test_the_plain_forward_equals_transformers_with_its_own_attention(llama_folder: Path) -> None:
    """In one piece, in pieces, and in another slot with other sequences beside it."""
    decoder = plain(load_model(llama_folder, recipe_for(Path()).model))
    ids = random_ids(3, 30)
    with torch.inference_mode():
        expected = oracle(llama_folder).base_model(torch.tensor([ids])).last_hidden_state[0]
        whole = decoder(torch.tensor(ids), [Chunk(2, 0, 30)])
        pieces = [decoder(torch.tensor(ids[:11]), [Chunk(5, 0, 11)])]
        beside = decoder(torch.tensor([7, *ids[11:29]]), [Chunk(0, 0, 1), Chunk(5, 11, 18)])
        pieces += [beside[1:], decoder(torch.tensor(ids[29:]), [Chunk(5, 29, 1)])]
    torch.testing.assert_close(whole, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.cat(pieces), expected, atol=1e-4, rtol=1e-4)


def test_only_float32_on_a_cpu_with_numba_has_a_fast_decoder_unless_it_is_switched_off(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(llama_folder, recipe_for(Path()).model)
    assert fast_decoder(model, cache_for(model)) is not None
    for dtype, device in ((torch.bfloat16, "cpu"), (torch.float32, "meta")):
        assert fast_decoder(model, KeyValueCache(model.config, 8, 64, dtype, torch.device(device))) is None
    with monkeypatch.context() as patch:
        patch.setenv("ASTER_FAST_CPU", "0")
        assert fast_decoder(model, cache_for(model)) is None
    monkeypatch.delitem(sys.modules, "aster.engines.local.cpu.loops")
    monkeypatch.setitem(sys.modules, "numba", None)
    assert fast_decoder(model, cache_for(model)) is None


def adapt(model: Any) -> list[torch.nn.Parameter]:
    """Give a model LoRA adapters that change what it computes; returns their parameters."""
    Adapters(model, Policy(lora_rank=3, lora_alpha=5.0), 0)
    parameters = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return parameters


def test_adapters_are_computed_as_peft_does_and_training_changes_them(model: Any) -> None:
    parameters = adapt(model)
    decoder = fast(model)
    assert decoder.layers
    before = hidden_states(decoder)
    assert apart(before, hidden_states(plain(model))) < 1e-5
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(-1.5)
    after = hidden_states(decoder)
    assert apart(after, hidden_states(plain(model))) < 1e-5
    assert apart(after, before) > 1e-3


def apart(left: torch.Tensor, right: torch.Tensor) -> float:
    """The mean difference, as a share of the mean size."""
    return float((left - right).abs().mean() / right.abs().mean())


@pytest.mark.skipif(not has_packed_products(), reason="weights are packed on x86-64 with oneDNN only")
def test_packed_weights_are_those_of_the_last_refresh(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "MIN_PACKED_ELEMENTS", 1)
    decoder = fast(model)
    down = decoder.layers[0].down
    packed = down._packed
    assert packed is not None
    before = hidden_states(decoder)
    decoder.refresh_weights()
    assert down._packed is packed, "nothing has changed"
    with torch.no_grad():
        torch._foreach_mul_([parameter for parameter in model.parameters() if parameter.dim() == 2], 0.7)  # as optimizers do
    decoder.refresh_weights()
    after = hidden_states(decoder)
    assert not torch.allclose(before, after, atol=1e-3)
    decoder.release_weights()
    assert down._packed is None
    torch.testing.assert_close(hidden_states(decoder), after, atol=1e-4, rtol=1e-4)
    logits = model.get_output_embeddings()(after)
    decoder.refresh_weights()
    torch.testing.assert_close(decoder.logits(after), logits, atol=1e-4, rtol=1e-4)


def test_weights_changed_in_place_are_seen_and_replaced_ones_after_a_refresh(model: Any) -> None:
    decoder = fast(model)
    before = hidden_states(decoder)
    places = [parameter.data_ptr() for parameter in model.parameters()]
    decoder.refresh_weights()
    assert [parameter.data_ptr() for parameter in model.parameters()] == places
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    halved = hidden_states(decoder)
    assert not torch.allclose(before, halved, atol=1e-3)
    for parameter in model.parameters():
        parameter.data = parameter.data * 2
    decoder.refresh_weights()
    torch.testing.assert_close(hidden_states(decoder), before, atol=1e-5, rtol=1e-5)


def test_a_model_with_joined_weights_is_saved_and_trained_as_before(model: Any, tmp_path: Path) -> None:
    names = dict(model.named_parameters())
    values = {name: parameter.clone() for name, parameter in names.items()}
    fast(model)
    model.save_pretrained(tmp_path / "saved")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert dict(model.named_parameters()).keys() == names.keys()
    for name, parameter in saved.named_parameters():
        torch.testing.assert_close(parameter, values[name], atol=0, rtol=0)
    save_file({name: parameter.detach() for name, parameter in names.items()}, tmp_path / "weights.safetensors")
    sizes = sum(file.stat().st_size for file in (tmp_path / "saved").glob("*.safetensors"))
    assert sizes < 1.1 * sum(parameter.numel() * 4 for parameter in names.values()) + 10_000  # nothing twice


def test_other_layers_are_left_to_transformers(model: Any) -> None:
    class Adapted(torch.nn.Linear):
        """Stands for an adapter around a linear layer."""

    attention = model.base_model.layers[1].self_attn
    attention.o_proj = Adapted(attention.o_proj.in_features, attention.o_proj.out_features, bias=False)
    decoder = fast(model)
    assert not decoder.layers
    torch.testing.assert_close(hidden_states(decoder), hidden_states(plain(model)), atol=1e-4, rtol=1e-4)


def test_other_architectures_are_left_to_transformers() -> None:
    torch.manual_seed(4)
    config = PhiConfig(
        vocab_size=300, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, initializer_range=0.2, attn_implementation=IMPLEMENTATION,
    )  # fmt: skip
    model = PhiForCausalLM(config).eval()
    decoder = fast(model)
    assert not decoder.layers
    torch.testing.assert_close(hidden_states(decoder), hidden_states(plain(model)), atol=1e-4, rtol=1e-4)


def test_joining_finds_what_lies_side_by_side() -> None:
    parts = [torch.nn.Parameter(torch.randn(rows, 4)) for rows in (3, 2, 5)]
    expected = torch.cat([part.data for part in parts])
    joined = join_parameters(parts)
    assert torch.equal(joined, expected)
    assert join_parameters(parts).data_ptr() == joined.data_ptr()
    parts[1].data = torch.zeros(2, 4)
    again = join_parameters(parts)
    assert again.data_ptr() != joined.data_ptr()
    assert torch.equal(again[3:5], torch.zeros(2, 4))
    # In one storage, but not in this order.
    swapped = [parts[1], parts[0]]
    assert torch.equal(join_parameters(swapped), torch.cat([part.data for part in swapped]))


def test_a_cache_that_memory_cannot_hold_is_the_users_error() -> None:
    config = Qwen2Config(hidden_size=48, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2)
    with refused("rollout.cache_tokens", " 4 ", "1000000000000"):
        KeyValueCache(config, 4, 10**12, torch.float32, torch.device("cpu"))
