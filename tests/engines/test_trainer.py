"""The packed trainer against plain transformers, and checkpoints."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from aster.algorithms.grpo import Grpo
from aster.engines import AdamStep, Loss, SamplingParams, TrainingSample
from aster.engines.local import scoring
from aster.engines.local.engine import LocalEngine
from aster.engines.local.trainer import microbatches
from tests.engines.models import oracle, oracle_logprobs, random_ids, recipe_for
from tests.refusals import refused

SFT = Loss("cross_entropy")
PPO = Grpo().loss


def make_samples(lengths: list[int], scale: float | None = None) -> list[TrainingSample]:
    """Samples with spans of trained tokens; ``scale`` defaults to the token mean."""
    masks = []
    for index, length in enumerate(lengths):
        mask = [0] * length
        for start in range(index % 5, length, 9):
            mask[start : start + 4] = [1] * len(mask[start : start + 4])
        masks.append(mask)
    tokens = sum(sum(mask[1:]) for mask in masks)
    return [
        TrainingSample(random_ids(index, length), masks[index], scale if scale is not None else 1 / tokens)
        for index, length in enumerate(lengths)
    ]


LENGTHS = [37, 5, 64, 12, 90, 21]


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """The gradients so far, which are then cleared."""
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def backward(
    policy: LocalEngine, samples: list[TrainingSample], loss: Loss
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    metrics = policy.trainer.forward_backward(samples, loss)
    return metrics, gradients(policy.model)


def assert_close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert first.keys() == second.keys()
    for name in first:
        scale = float(second[name].abs().max())
        torch.testing.assert_close(first[name], second[name], atol=tolerance * max(scale, 1e-6), rtol=0, msg=name)


def flat(parts: list[list[float]]) -> torch.Tensor:
    return torch.tensor(list(itertools.chain.from_iterable(parts)))


def per_token(model: Any, samples: list[TrainingSample]) -> list[torch.Tensor]:
    """Log-probabilities (with gradient) of the trained tokens of each sample, one sample at a time."""
    found = []
    for sample in samples:
        positions = sample.trained_positions
        logprobs = model(torch.tensor([sample.token_ids])).logits[0].log_softmax(-1)
        found.append(torch.stack([logprobs[p - 1, sample.token_ids[p]] for p in positions]))
    return found


@pytest.mark.parametrize("microbatch", [1, 80, 4096])
def test_sft_loss_and_gradient_equal_transformers(folder: Path, microbatch: int) -> None:
    samples, reference = make_samples(LENGTHS), oracle(folder)
    longest = max(LENGTHS)
    padding = [longest - length for length in LENGTHS]
    ids = torch.tensor([s.token_ids + [0] * pad for s, pad in zip(samples, padding, strict=True)])
    attention = torch.tensor([[1] * length + [0] * (longest - length) for length in LENGTHS])
    labels = torch.tensor(
        [
            [token if flag else -100 for token, flag in zip(s.token_ids, s.loss_mask, strict=True)] + [-100] * pad
            for s, pad in zip(samples, padding, strict=True)
        ]
    )
    expected = reference(input_ids=ids, attention_mask=attention, labels=labels).loss
    expected.backward()

    policy = LocalEngine(recipe_for(folder))
    policy.trainer.microbatch_tokens = microbatch
    metrics, found = backward(policy, samples, SFT)
    assert metrics["loss"] == pytest.approx(float(expected.detach()), abs=1e-5)
    assert metrics["tokens"] == int((labels[:, 1:] != -100).sum())
    assert_close(found, gradients(reference))


def test_packing_and_chunking_change_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, samples = LocalEngine(recipe_for(folder)), make_samples(LENGTHS)
    metrics, found = backward(policy, samples, SFT)
    together = policy.trainer.forward(samples)
    for sample, logprobs in zip(samples, together, strict=True):
        positions = sample.trained_positions
        expected = oracle_logprobs(oracle(folder), sample.token_ids)[[p - 1 for p in positions]]
        torch.testing.assert_close(torch.tensor(logprobs), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.tensor(policy.trainer.forward([sample])[0]), expected, atol=1e-5, rtol=1e-5)

    monkeypatch.setitem(scoring.LOGITS_ELEMENTS, "cpu", 7 * policy.model.config.vocab_size)
    chunked_metrics, chunked = backward(policy, samples, SFT)
    assert chunked_metrics == pytest.approx(metrics, rel=1e-5)
    assert_close(chunked, found)
    torch.testing.assert_close(flat(policy.trainer.forward(samples)), flat(together), atol=1e-5, rtol=1e-5)


def test_entropy_is_that_of_the_predicting_distributions(folder: Path) -> None:
    policy, samples, reference = LocalEngine(recipe_for(folder)), make_samples(LENGTHS), oracle(folder)
    expected = 0.0
    for sample in samples:
        with torch.no_grad():
            logits = reference(torch.tensor([sample.token_ids])).logits[0]
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        expected += sum(float(entropy[position - 1]) for position in sample.trained_positions)
    for loss in (SFT, PPO):
        metrics, _ = backward(policy, samples, loss)
        assert metrics["entropy_sum"] == pytest.approx(expected, rel=1e-5)


def test_on_policy_ppo_is_reinforce(folder: Path) -> None:
    policy, reference = LocalEngine(recipe_for(folder)), oracle(folder)
    policy.trainer.microbatch_tokens = 100
    advantages = [0.5, -1.0, 2.0, -0.25, 1.0, -2.0]
    samples = [replace(s, weights=a / 100) for s, a in zip(make_samples(LENGTHS), advantages, strict=True)]
    objective = sum(
        (a / 100 * logprobs.sum() for a, logprobs in zip(advantages, per_token(reference, samples), strict=True)),
        torch.zeros(()),
    )
    (-objective).backward()
    expected = gradients(reference)
    metrics, found = backward(policy, samples, PPO)
    assert_close(found, expected)
    assert metrics["ratio_min"] == metrics["ratio_max"] == 1.0
    # The same with the old log-probabilities computed beforehand, as for a later minibatch.
    old = policy.trainer.forward(samples)
    _, again = backward(policy, [replace(s, old_logprobs=o) for s, o in zip(samples, old, strict=True)], PPO)
    assert_close(again, expected)


def test_importance_weights_and_clipping_act_token_by_token(lab_folder: Path) -> None:
    """Sampler and old log-probabilities meet their own token, although one is given flat and the other by position."""
    policy, reference = LocalEngine(recipe_for(lab_folder)), oracle(lab_folder)
    samples = make_samples(LENGTHS, scale=0.01)
    present = policy.trainer.forward(samples)
    generator = torch.Generator().manual_seed(0)
    given, objective = [], torch.zeros(())
    for sample, now, live in zip(samples, present, per_token(reference, samples), strict=True):
        old = torch.tensor(now) + 0.4 * torch.randn(len(now), generator=generator)
        sampler = old + 0.8 * torch.randn(len(now), generator=generator)
        by_position = [0.0] * len(sample.token_ids)
        for position, value in zip(sample.trained_positions, sampler.tolist(), strict=True):
            by_position[position] = value
        given.append(replace(sample, old_logprobs=old.tolist(), sampler_logprobs=by_position))
        ratio = (live - old).exp()
        surrogate = torch.minimum(ratio, ratio.clamp(max=1.28))
        objective = objective + 0.01 * ((old - sampler).exp().clamp(max=2.0) * surrogate).sum()
    (-objective).backward()
    policy.trainer.microbatch_tokens = 100
    metrics, found = backward(policy, given, PPO)
    assert metrics["loss"] == pytest.approx(-float(objective.detach()), rel=1e-5)
    assert metrics["clipped_high"] > 5
    assert metrics["importance_capped"] > 5
    assert_close(found, gradients(reference))


def test_half_given_old_logprobs_are_refused(lab_folder: Path) -> None:
    policy, samples = LocalEngine(recipe_for(lab_folder)), make_samples([20, 20])
    mixed = [samples[0], replace(samples[1], old_logprobs=policy.trainer.forward(samples)[1])]
    with pytest.raises(ValueError, match=r"\bold\b"):
        policy.trainer.forward_backward(mixed, PPO)


@given(lengths=st.lists(st.integers(1, 50), max_size=20), tokens=st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_microbatches_are_bounded_and_keep_the_order(lengths: list[int], tokens: int) -> None:
    samples = [TrainingSample([0] * length, [1] * length, 1.0) for length in lengths]
    batches = microbatches(samples, tokens)
    assert [index for batch in batches for index in batch] == list(range(len(lengths)))
    assert all(len(batch) == 1 or sum(lengths[i] for i in batch) <= tokens for batch in batches)
    # None could have taken the next one's first sample as well.
    for batch, following in itertools.pairwise(batches):
        assert sum(lengths[i] for i in batch) + lengths[following[0]] > tokens


def test_gradient_checkpointing_computes_layers_twice_and_changes_nothing(folder: Path) -> None:
    plain, saving = LocalEngine(recipe_for(folder)), LocalEngine(recipe_for(folder, gradient_checkpointing=True), capacity=256)
    samples, calls = make_samples(LENGTHS), []
    saving.model.base_model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    metrics, found = backward(saving, samples, SFT)
    assert len(calls) == 2
    expected_metrics, expected = backward(plain, samples, SFT)
    assert metrics == pytest.approx(expected_metrics)
    assert_close(found, expected)
    completion = asyncio.run(saving.sample([1, 2, 3], SamplingParams(max_tokens=5, temperature=0.0)))
    assert len(completion.token_ids) == 5


def test_an_optimizer_step_is_adamw_on_the_clipped_sum_of_gradients(lab_folder: Path) -> None:
    policy, reference, samples = LocalEngine(recipe_for(lab_folder)), oracle(lab_folder), make_samples(LENGTHS)
    adam = AdamStep(learning_rate=1e-3, beta1=0.8, beta2=0.9, eps=1e-7, weight_decay=0.1, max_grad_norm=0.05)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-3, betas=(0.8, 0.9), eps=1e-7, weight_decay=0.1)
    for _ in range(2):
        # Gradients of two calls add up.
        policy.trainer.forward_backward(samples[:3], SFT)
        policy.trainer.forward_backward(samples[3:], SFT)
        norm = policy.trainer.optim_step(adam)["grad_norm"]
        loss = -sum(
            (s.trained_weights[0] * x.sum() for s, x in zip(samples, per_token(reference, samples), strict=True)),
            torch.zeros(()),
        )
        loss.backward()
        assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.05)), rel=1e-4)
        assert norm > 0.05
        optimizer.step()
        optimizer.zero_grad()
    expected = dict(reference.named_parameters())
    for name, parameter in policy.model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], atol=2e-5, rtol=0, msg=name)


def test_a_checkpoint_goes_on_as_if_nothing_had_happened(folder: Path, tmp_path: Path) -> None:
    samples, adam = make_samples(LENGTHS), AdamStep(learning_rate=3e-3)

    async def steps(policy: LocalEngine, count: int) -> list[float]:
        losses = []
        for _ in range(count):
            losses.append((await policy.forward_backward(samples, SFT))["loss"])
            await policy.optim_step(adam)
        return losses

    async def work() -> None:
        policy = LocalEngine(recipe_for(folder), capacity=64)
        await steps(policy, 2)
        await policy.save(tmp_path / "saved")
        expected = await steps(policy, 3)
        assert expected[0] > expected[-1]

        reopened = LocalEngine(recipe_for(folder), tmp_path / "saved", optimizer=True)
        assert await steps(reopened, 3) == expected

        # Without the optimizer's state the weights are the same, and the moments start anew.
        fresh = await steps(LocalEngine(recipe_for(folder), tmp_path / "saved"), 3)
        assert fresh[0] == expected[0]
        assert fresh[1:] != expected[1:]
        weights_only = tmp_path / "weights"
        await LocalEngine(recipe_for(folder), tmp_path / "saved").save(weights_only, optimizer=False)
        assert await steps(LocalEngine(recipe_for(folder), weights_only, optimizer=True), 3) == fresh

    asyncio.run(work())


@pytest.mark.parametrize("content", [b"", b"not a file of torch's", None], ids=["empty", "foreign", "cut off"])
def test_a_damaged_optimizer_state_is_one_line(content: bytes | None, folder: Path, tmp_path: Path) -> None:
    policy = LocalEngine(recipe_for(folder))
    policy.trainer.forward_backward(make_samples(LENGTHS), SFT)
    policy.trainer.optim_step(AdamStep(learning_rate=1e-3))
    asyncio.run(policy.save(tmp_path / "saved"))
    state = tmp_path / "saved" / "optimizer.pt"
    state.write_bytes(state.read_bytes()[:1000] if content is None else content)
    with refused(str(state), f" {tmp_path / 'saved'} "):  # the second is the folder to delete
        LocalEngine(recipe_for(folder), tmp_path / "saved", optimizer=True)


def test_a_saved_folder_is_a_plain_transformers_folder(folder: Path, tmp_path: Path) -> None:
    policy, samples = LocalEngine(recipe_for(folder)), make_samples(LENGTHS)
    policy.trainer.forward_backward(samples, SFT)
    policy.trainer.optim_step(AdamStep(learning_rate=1e-2))
    asyncio.run(policy.save(tmp_path / "saved"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    for sample, logprobs in zip(samples, policy.trainer.forward(samples), strict=True):
        expected = oracle_logprobs(model, sample.token_ids)[[p - 1 for p in sample.trained_positions]]
        torch.testing.assert_close(torch.tensor(logprobs), expected, atol=1e-5, rtol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    text = "Start with 5. Do 1:*3 2:+14. é\n\n<|im_end|>"
    assert tokenizer.encode(text) == policy.tokenizer.encode(text)
    assert tokenizer.chat_template == policy.tokenizer.chat_template
    assert policy.dialect.open_thinking
