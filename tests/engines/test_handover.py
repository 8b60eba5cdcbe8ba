"""Folders of weights for another process are the model: with adapters merged, with an output layer of their own."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from aster.config import EngineConfig, Model, Policy
from aster.engines.handover import blank, untie, write_merged
from aster.engines.local.engine import LocalEngine
from tests.engines.models import oracle, oracle_logprobs, random_ids

IDS = random_ids(3, 40)


def test_merged_adapters_are_the_model_that_has_them(lab_folder: Path, tmp_path: Path) -> None:
    recipe = EngineConfig(model=Model(path=str(lab_folder), device="cpu", threads=1), policy=Policy(lora_rank=4))
    policy = LocalEngine(recipe)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if ".lora_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    before = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    write_merged(policy.model, policy.tokenizer, tmp_path / "merged")
    merged = oracle_logprobs(oracle(tmp_path / "merged"), IDS)
    policy.model.set_attn_implementation("eager")
    torch.testing.assert_close(merged, oracle_logprobs(policy.model, IDS), atol=1e-4, rtol=0)
    assert (merged - oracle_logprobs(oracle(lab_folder), IDS)).abs().max() > 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.model.state_dict().items())


def test_an_untied_folder_has_an_output_layer_of_its_own_and_is_the_same_model(lab_folder: Path, tmp_path: Path) -> None:
    model = oracle(lab_folder)
    assert model.config.tie_word_embeddings
    model.save_pretrained(tmp_path)
    untie(tmp_path, model.get_output_embeddings().weight)
    untied = oracle(tmp_path)
    assert untied.get_output_embeddings().weight is not untied.get_input_embeddings().weight
    torch.testing.assert_close(oracle_logprobs(untied, IDS), oracle_logprobs(model, IDS))


def test_an_index_of_shards_lists_the_output_layer(lab_folder: Path, tmp_path: Path) -> None:
    model = oracle(lab_folder)
    model.save_pretrained(tmp_path, max_shard_size="500KB")
    untie(tmp_path, model.get_output_embeddings().weight)
    listed = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert listed["lm_head.weight"] == "lm_head.safetensors"
    torch.testing.assert_close(oracle_logprobs(oracle(tmp_path), IDS), oracle_logprobs(model, IDS))


def test_a_blank_folder_has_the_same_weights_all_zero(lab_folder: Path, tmp_path: Path) -> None:
    model = oracle(lab_folder)
    model.save_pretrained(tmp_path)
    before = load_file(tmp_path / "model.safetensors")
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in before.items()}
    blank(tmp_path)
    after = load_file(tmp_path / "model.safetensors")
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in after.items()} == shapes
    assert not any(tensor.any() for tensor in after.values())
