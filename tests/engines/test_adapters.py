"""LoRA adapters: what is trained, what is saved, and what PEFT makes of it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from aster.config import EngineConfig, Policy
from aster.engines import AdamStep, Loss, SamplingParams, TrainingSample
from aster.engines.local.engine import LocalEngine
from tests.engines.models import oracle, oracle_logprobs, random_ids, recipe_for
from tests.refusals import refused

SAMPLES = [TrainingSample(random_ids(n, 30), [0] * 10 + [1] * 20, 0.05) for n in range(2)]
GREEDY = SamplingParams(max_tokens=12, temperature=0.0)


def adapted(folder: Path, rank: int = 4) -> EngineConfig:
    return recipe_for(folder).model_copy(update={"policy": Policy(lora_rank=rank, lora_alpha=8.0)})


async def train(policy: LocalEngine, steps: int) -> float:
    for _ in range(steps):
        metrics = await policy.forward_backward(SAMPLES, Loss("cross_entropy"))
        await policy.optim_step(AdamStep(learning_rate=1e-2))
    return metrics["loss"]


def test_fresh_adapters_change_nothing_and_training_moves_them_alone(folder: Path) -> None:
    policy = LocalEngine(adapted(folder), capacity=128)
    reference = oracle(folder)
    expected = [oracle_logprobs(reference, s.token_ids)[9:] for s in SAMPLES]
    torch.testing.assert_close(torch.tensor(policy.trainer.forward(SAMPLES)), torch.stack(expected), atol=1e-4, rtol=0)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}

    async def work() -> tuple[float, float]:
        return await train(policy, 1), await train(policy, 15)

    first, last = asyncio.run(work())
    assert last < first - 0.5
    moved = {name for name, p in policy.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    assert not any("lm_head" in name for name in moved)


def test_a_checkpoint_holds_adapters_that_peft_reads_and_training_goes_on(lab_folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    policy = LocalEngine(adapted(lab_folder), capacity=128)

    async def work() -> tuple[list[int], float]:
        await train(policy, 5)
        await policy.save(tmp_path / "checkpoint")
        await policy.refresh_sampler()
        drawn = await policy.sample(random_ids(0, 20), GREEDY)
        return drawn.token_ids, await train(policy, 3)

    tokens, loss = asyncio.run(work())
    assert not (tmp_path / "checkpoint" / "model.safetensors").exists()
    merged = PeftModel.from_pretrained(oracle(lab_folder), tmp_path / "checkpoint").merge_and_unload()
    ids = torch.tensor([random_ids(0, 20)])
    assert merged.generate(ids, do_sample=False, max_new_tokens=12, eos_token_id=None)[0, 20:].tolist() == tokens

    reopened = LocalEngine(adapted(lab_folder), tmp_path / "checkpoint", optimizer=True, capacity=128)
    assert asyncio.run(reopened.sample(random_ids(0, 20), GREEDY)).token_ids == tokens
    assert asyncio.run(train(reopened, 3)) == pytest.approx(loss, abs=1e-6)


def test_adapters_that_do_not_fit_are_refused(lab_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(LocalEngine(adapted(lab_folder)).save(tmp_path / "rank4"))
    saved = tmp_path / "rank4" / "adapter_model.safetensors"
    with refused(str(saved), "policy.lora_rank=2"):
        LocalEngine(adapted(lab_folder, rank=2), tmp_path / "rank4")
    with refused(str(lab_folder), saved.name, "policy.lora_rank=0"):
        LocalEngine(adapted(lab_folder), lab_folder)
    saved.write_bytes(b"torn")
    with refused(str(saved)) as torn:
        LocalEngine(adapted(lab_folder), tmp_path / "rank4")
    assert isinstance(torn.value.__cause__, SafetensorError)
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with refused("policy.lora_rank", "pip install 'peft>="):
        LocalEngine(adapted(lab_folder))
