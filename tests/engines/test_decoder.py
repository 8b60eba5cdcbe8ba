"""The sampler's own forward computes what transformers' does, on weights that stay the model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from aster.config import Policy
from aster.engines.local.adapters import Adapters
from aster.engines.local.cache import DecodeLayout, KeyValueCache
from aster.engines.local.cpu import products
from aster.engines.local.cpu.decoder import Decoder
from aster.engines.local.cpu.products import _can_be_packed, join
from aster.engines.local.loading import load_model
from aster.errors import UserError
from tests.engines.models import random_ids, recipe_for


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


def hidden_states(model: Any, decoder: Decoder, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Of eight sequences: prompts, one of them long, then one token of some and nine of another, of all, of many, of a few, of
    one."""
    cache = KeyValueCache(model.config, 8, 64, dtype, torch.device("cpu"))
    lengths = [20, 5, 41, 7, 7, 12, 1, 28]
    steps: list[list[tuple[int, int, int]]] = [list(zip(range(8), [0] * 8, lengths, strict=True))]
    for part in (
        [(0, 1), (2, 1), (1, 9)],
        [(slot, 1) for slot in range(8)],
        [(s, 1) for s in (0, 1, 3, 4, 6, 7)],
        [(5, 1), (2, 1)],
        [(7, 1)],
    ):
        steps.append([(slot, lengths[slot], tokens) for slot, tokens in part])
        for slot, tokens in part:
            lengths[slot] += tokens
    outputs = []
    with torch.inference_mode():
        for number, fed in enumerate(steps):
            ids = torch.tensor(random_ids(number, sum(tokens for _, _, tokens in fed)))
            outputs.append(decoder(ids, DecodeLayout(cache, fed, 8, torch.device("cpu"))))
    return torch.cat(outputs)


@pytest.fixture(params=["lab", "llama", "qwen2"])
def model(request: pytest.FixtureRequest) -> Any:
    return load_model(request.getfixturevalue(f"{request.param}_folder"), recipe_for(Path()).model)


@pytest.mark.parametrize("way", ["kernels", "torch", "packed"])
def test_it_equals_the_models_own_forward(model: Any, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "torch":
        monkeypatch.setattr("aster.engines.local.cache.kernels_for", lambda *_: None)
    if way == "packed":
        monkeypatch.setattr(products, "PACKED_FROM", 1)
    fast, plain = Decoder(model), Decoder(model)
    plain.plain = True
    fast.renew()
    assert not fast.plain
    torch.testing.assert_close(hidden_states(model, fast), hidden_states(model, plain), atol=1e-4, rtol=1e-4)


def adapt(model: Any) -> list[torch.nn.Parameter]:
    """Give a model LoRA adapters that change what it computes; returns their parameters."""
    Adapters(model, Policy(lora_rank=3, lora_alpha=5.0), 0)
    parameters = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return parameters


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_adapters_are_computed_as_peft_does_and_training_changes_them(model: Any, dtype: torch.dtype, tolerance: float) -> None:
    parameters = adapt(model)
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(dtype)
    fast, plain = Decoder(model), Decoder(model)
    plain.plain = True
    fast.renew()
    assert not fast.plain
    before = hidden_states(model, fast, dtype)
    assert apart(before, hidden_states(model, plain, dtype)) < tolerance
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(-1.5)
    after = hidden_states(model, fast, dtype)
    assert apart(after, hidden_states(model, plain, dtype)) < tolerance
    assert apart(after, before) > 5 * tolerance


def apart(left: torch.Tensor, right: torch.Tensor) -> float:
    """The mean difference, as a share of the mean size."""
    return float((left - right).abs().mean() / right.abs().mean())


@pytest.mark.skipif(not _can_be_packed(torch.zeros(1)), reason="weights are packed on x86-64 with oneDNN alone")
def test_packed_weights_are_those_of_the_last_renewal(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "PACKED_FROM", 1)
    decoder = Decoder(model)
    decoder.renew()
    product = decoder.layers[0].down
    packed = product._packed
    assert packed is not None
    before = hidden_states(model, decoder)
    decoder.renew()
    assert product._packed is packed, "nothing has changed"
    with torch.no_grad():
        torch._foreach_mul_([parameter for parameter in model.parameters() if parameter.dim() == 2], 0.7)  # as optimizers do
    decoder.renew()
    after = hidden_states(model, decoder)
    assert not torch.allclose(before, after, atol=1e-3)
    decoder.release()
    assert product._packed is None
    torch.testing.assert_close(hidden_states(model, decoder), after, atol=1e-4, rtol=1e-4)
    logits = model.get_output_embeddings()(after)
    decoder.renew()
    torch.testing.assert_close(decoder.logits(after), logits, atol=1e-4, rtol=1e-4)


def test_weights_changed_in_place_are_seen_and_replaced_ones_after_renewing(model: Any) -> None:
    decoder = Decoder(model)
    decoder.renew()
    before = hidden_states(model, decoder)
    places = [parameter.data_ptr() for parameter in model.parameters()]
    decoder.renew()
    assert [parameter.data_ptr() for parameter in model.parameters()] == places
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    halved = hidden_states(model, decoder)
    assert not torch.allclose(before, halved, atol=1e-3)
    for parameter in model.parameters():
        parameter.data = parameter.data * 2
    decoder.renew()
    torch.testing.assert_close(hidden_states(model, decoder), before, atol=1e-5, rtol=1e-5)


def test_a_model_with_joined_weights_is_saved_and_trained_as_before(model: Any, tmp_path: Path) -> None:
    names = dict(model.named_parameters())
    values = {name: parameter.clone() for name, parameter in names.items()}
    Decoder(model).renew()
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
    decoder = Decoder(model)
    decoder.renew()
    assert decoder.plain
    assert torch.isfinite(hidden_states(model, decoder)).all()


def test_join_finds_what_lies_side_by_side() -> None:
    parts = [torch.nn.Parameter(torch.randn(rows, 4)) for rows in (3, 2, 5)]
    expected = torch.cat([part.data for part in parts])
    joined = join(parts)
    assert torch.equal(joined, expected)
    assert join(parts).data_ptr() == joined.data_ptr()
    parts[1].data = torch.zeros(2, 4)
    again = join(parts)
    assert again.data_ptr() != joined.data_ptr()
    assert torch.equal(again[3:5], torch.zeros(2, 4))
    # In one storage, but not in this order.
    swapped = [parts[1], parts[0]]
    assert torch.equal(join(swapped), torch.cat([part.data for part in swapped]))


def test_a_cache_that_memory_cannot_hold_is_the_users_error() -> None:
    config = Qwen2Config(hidden_size=48, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2)
    with pytest.raises(UserError, match=r"rollout.cache_tokens: no memory for the cache of 4 contexts of 1000000000000 tokens"):
        KeyValueCache(config, 4, 10**12, torch.float32, torch.device("cpu"))
