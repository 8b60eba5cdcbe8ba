"""The Tinker policy against a FAKE server: nothing is done twice, nothing waits for ever, and each fault is one clear line."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aster.algorithms.grpo import Grpo
from aster.config import EngineConfig
from aster.config.file import validate_recipe
from aster.engines import AdamStep, Engine, EngineLost, Loss, SamplingParams, TrainingSample
from aster.engines.opening import open_engine
from aster.errors import UserError

pytest.importorskip("tinker")
import httpx
import tinker

from aster.engines.tinker import engine as tinker_policy
from aster.engines.tinker import service as tinker_service
from aster.engines.tinker.service import Service
from tests.engines.fake_tinker_server import LOGPROB, FakeModel, FakeTinkerServer
from tests.refusals import refused, require

SAMPLES = [
    TrainingSample([1, 2, 3, 4], [0, 0, 1, 1], 0.5, [0.0, 0.0, -0.4, -0.6]),
    TrainingSample([5, 6, 7], [0, 1, 1], -0.5, [0.0, -0.5, -0.5]),
]
PPO = Grpo().loss
TURN = SamplingParams(max_tokens=3, seed=1, stop_token_ids=(9,))
WAITED = (" 1 seconds", "policy.patience_seconds")
"""What an error names that comes after a patience of one second."""


@pytest.fixture
def fake(lab_folder: Path) -> Iterator[FakeTinkerServer]:
    """Serves the model under its folder's last part."""
    server = FakeTinkerServer(served=f"org/{lab_folder.name}")
    yield server
    if server._http is not None:
        server.stop()


def recipe_for(fake: FakeTinkerServer, folder: Path, slots: int = 8, **policy: Any) -> EngineConfig:
    """A recipe whose policy is on the fake server."""
    settings = {"kind": "tinker", "base_url": fake.url, "lora_rank": 8, "patience_seconds": 30.0, **policy}
    return validate_recipe({"model": {"path": str(folder)}, "policy": settings, "rollout": {"slots": slots}}, "test").engine


def only(fake: FakeTinkerServer) -> FakeModel:
    """The one model that the server holds."""
    (model,) = fake.models.values()
    return model


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run to the end, in a minute at most."""
    asyncio.run(asyncio.wait_for(work(), 60))


@asynccontextmanager
async def opened(recipe: EngineConfig, checkpoint: Path | None = None, **settings: Any) -> AsyncIterator[Engine]:
    """The recipe's policy, ready to sample."""
    async with open_engine(recipe, checkpoint, capacity=64, **settings) as policy:
        yield policy


def test_one_training_step_and_one_turn(fake: FakeTinkerServer, lab_folder: Path) -> None:
    async def work() -> None:
        async with opened(recipe_for(fake, lab_folder)) as policy:
            assert await policy.forward(SAMPLES) == [[LOGPROB, LOGPROB], [LOGPROB, LOGPROB]]
            metrics = await policy.forward_backward(SAMPLES, PPO)
            assert metrics["tokens"] == 4
            assert await policy.optim_step(AdamStep(1e-3)) == {"grad_norm": 2.5}
            completion = await policy.sample([1, 2], TURN)
            assert (completion.token_ids, completion.logprobs, completion.stopped) == ([7, 7, 9], [LOGPROB] * 3, True)
            sent = only(fake).last_pass
            assert (sent.loss_fn, dict(sent.loss_fn_config)) == (
                "ppo",
                {"clip_low_threshold": pytest.approx(0.8), "clip_high_threshold": pytest.approx(1.28)},
            )
            assert (only(fake).gradients, only(fake).steps, only(fake).rank) == (1, 1, 8)
        assert not fake.models  # closed: the server may free it

    run(work)


def test_a_turn_goes_on_past_an_end_token_that_is_not_ours(fake: FakeTinkerServer, lab_folder: Path) -> None:
    async def work() -> None:
        async with opened(recipe_for(fake, lab_folder)) as policy:
            fake.ends = [3]
            turn = await policy.sample([1, 2], SamplingParams(max_tokens=5, stop_token_ids=(9,)))
            assert (turn.token_ids, turn.logprobs, turn.stopped) == ([7, 3, 7, 7, 9], [LOGPROB] * 5, True)
            assert fake.prompts == [[1, 2], [1, 2, 7, 3]]
            fake.ends = [3]
            turn = await policy.sample([1, 2], SamplingParams(max_tokens=2, stop_token_ids=(9,)))
            assert (turn.token_ids, turn.stopped) == ([7, 3], False)
            fake.ends = [3]
            turn = await policy.sample([1, 2], SamplingParams(max_tokens=4))
            assert (turn.token_ids, turn.stopped) == ([7, 3, 7, 7], False)

    run(work)


@pytest.mark.parametrize("path", ["forward_backward", "optim_step"])
def test_a_step_whose_answer_was_lost_is_done_once(path: str, fake: FakeTinkerServer, lab_folder: Path) -> None:
    async def work() -> None:
        async with opened(recipe_for(fake, lab_folder)) as policy:
            await policy.forward(SAMPLES)
            fake.faults[path, "lose"] = 1
            await policy.forward_backward(SAMPLES, Loss("cross_entropy"))
            await policy.optim_step(AdamStep(1e-3))
            assert fake.faults[path, "lose"] == 0
            assert (only(fake).gradients, only(fake).steps) == (1, 1)

    run(work)


def test_a_model_is_freed_though_a_connection_breaks(fake: FakeTinkerServer, lab_folder: Path) -> None:
    async def work() -> None:
        async with opened(recipe_for(fake, lab_folder)):
            fake.faults["unload_model", "drop"] = 1
        assert fake.faults["unload_model", "drop"] == 0
        assert not fake.models

    run(work)


def test_a_server_that_was_started_again_loses_the_policy(fake: FakeTinkerServer, lab_folder: Path) -> None:
    async def work() -> None:
        async with opened(recipe_for(fake, lab_folder)) as policy:
            fake.forget_models()
            for call in (
                lambda: policy.sample([1, 2], TURN),
                lambda: policy.forward(SAMPLES),
                lambda: policy.forward_backward(SAMPLES, Loss("cross_entropy")),
                lambda: policy.optim_step(AdamStep(1e-3)),
                lambda: policy.refresh_sampler(),
                lambda: policy.save(lab_folder.parent / "never"),
            ):
                with pytest.raises(EngineLost, match=re.escape(fake.url)) as lost:
                    await call()
                assert isinstance(lost.value.__cause__, Exception)
                assert tinker_service.is_gone(lost.value.__cause__)

    run(work)
    assert not (lab_folder.parent / "never").exists()


def test_turns_outlive_a_short_absence(fake: FakeTinkerServer, lab_folder: Path) -> None:
    async def work() -> None:
        async with opened(recipe_for(fake, lab_folder, patience_seconds=20.0)) as policy:
            fake.seconds_a_turn = 1.0
            turns = [asyncio.create_task(policy.sample([1, i], TURN)) for i in range(4)]
            await asyncio.sleep(0.3)
            fake.stop()
            await asyncio.sleep(2.0)
            fake.start()
            assert [(await turn).token_ids for turn in turns] == [[7, 7, 9]] * 4

    run(work)


def test_a_server_that_stays_away_is_one_error_after_the_patience(
    fake: FakeTinkerServer, lab_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def work() -> None:
        async with opened(recipe_for(fake, lab_folder, patience_seconds=1.0)) as policy:
            fake.stop()
            with refused("policy.base_url", fake.url, *WAITED):
                await policy.forward_backward(SAMPLES, Loss("cross_entropy"))
            # Whoever asks after that hears it at once.
            with refused("policy.base_url", fake.url, *WAITED):
                await policy.sample([1], TURN)

    run(work)
    assert re.search(rf"^tinker: {re.escape(fake.url)} .* 1 seconds$", capsys.readouterr().err, re.MULTILINE)


def test_a_server_that_goes_away_in_a_refresh_is_one_error_too(fake: FakeTinkerServer, lab_folder: Path) -> None:
    async def work() -> None:
        async with opened(recipe_for(fake, lab_folder, patience_seconds=1.0)) as policy:
            fake.seconds_a_refresh = 20.0
            refresh = asyncio.create_task(policy.refresh_sampler())
            await asyncio.sleep(0.3)  # the loop goes on meanwhile
            assert not refresh.done()
            fake.stop()
            with refused("policy.base_url", fake.url, *WAITED):
                await refresh

    run(work)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_fails_for_ever_is_one_error_after_the_patience(
    status: int, fake: FakeTinkerServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """It answers all the while, so that only the request itself can tell."""

    async def call() -> None:
        response = httpx.Response(status, request=httpx.Request("POST", fake.url))
        raise tinker.APIStatusError("no free worker", response=response, body=None)

    async def work() -> None:
        service = Service(fake.url, 1.0)
        await service.connect()
        try:
            requests = [service.ask("a turn", call, repeat=True, turn=True) for _ in range(5)]
            found = await asyncio.gather(*requests, return_exceptions=True)
            for error in found:
                assert isinstance(error, UserError)
                require(error, "policy.base_url", fake.url, "a turn", "no free worker", *WAITED)
        finally:
            await service.close()

    run(work)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(rf"^tinker: {re.escape(fake.url)} .*\ba turn\b.*\bno free worker\b.* 1 seconds$", line)


def test_a_busy_server_gets_no_more_turns_than_slots(fake: FakeTinkerServer, lab_folder: Path) -> None:
    async def work() -> None:
        async with opened(recipe_for(fake, lab_folder, slots=5)) as policy:
            fake.seconds_a_turn = 0.2
            fake.faults["asample", "busy"] = 3
            turns = await asyncio.gather(*(policy.sample([1, i], TURN) for i in range(20)))
            assert [turn.token_ids for turn in turns] == [[7, 7, 9]] * 20
            assert 3 <= fake.most_turns_at_once <= 5

    run(work)


def test_a_checkpoint_brings_back_weights_and_optimizer(fake: FakeTinkerServer, lab_folder: Path, tmp_path: Path) -> None:
    recipe = recipe_for(fake, lab_folder)
    first, second, third = (tmp_path / f"step_{i:06d}" for i in (1, 2, 3))

    async def work() -> None:
        async with opened(recipe) as policy:
            await policy.optim_step(AdamStep(1e-3))
            await policy.save(first)
            await policy.optim_step(AdamStep(1e-3))
            await policy.save(second)
        fake.forget_models()
        async with opened(recipe, second, optimizer=True) as policy:
            assert only(fake).loaded == (state_of(second), True)
            assert only(fake).steps == 2
            shutil.rmtree(first)  # as the run prunes
            await policy.save(third)
            assert set(fake.states) == {state_of(second), state_of(third)}
        async with opened(recipe, second) as policy:
            assert only(fake).loaded == (state_of(second), False)
            shutil.rmtree(third)  # and nothing is saved after that
            assert len(fake.states) == 2
        assert set(fake.states) == {state_of(second)}

    run(work)


def state_of(checkpoint: Path) -> str:
    """What a checkpoint points to."""
    state: str = json.loads((checkpoint / "tinker.json").read_text())["state"]
    return state


def not_opened(recipe: EngineConfig, field: str | None, *named: str, checkpoint: Path | None = None, capacity: int = 64) -> str:
    """The one line with which opening a policy fails. It must name the field, where there is one (None: the server itself
    fails), and hold each text of ``named``."""

    async def work() -> None:
        async with open_engine(recipe, checkpoint, capacity=capacity):
            pass

    with pytest.raises(UserError) as error:
        run(work)
    require(error.value, error.value.field if field is None else field, *named)
    return str(error.value)


def test_no_server(fake: FakeTinkerServer, lab_folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    not_opened(recipe_for(fake, lab_folder, base_url=url, patience_seconds=1.0), "policy.base_url", url)


def test_a_server_that_was_there_gets_the_whole_patience_when_a_policy_is_opened_again(
    fake: FakeTinkerServer, lab_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tinker_service, "ENTER_SECONDS", 0.2)

    async def work() -> None:
        recipe = recipe_for(fake, lab_folder)
        async with opened(recipe):
            fake.stop()

        async def come_back() -> None:
            await asyncio.sleep(1.0)
            fake.start()

        coming = asyncio.create_task(come_back())
        async with opened(recipe):
            assert fake.models
        await coming
        fake.stop()

    run(work)
    # One line when it is gone, with the seconds it is waited for, and one when it is back.
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith(f"tinker: {fake.url} ") for line in lines)
    assert [bool(re.search(r"\d seconds", line)) for line in lines] == [True, False]
    not_opened(recipe_for(fake, lab_folder, patience_seconds=1.0), "policy.base_url", fake.url, *WAITED)


@pytest.mark.parametrize("kind", ["tinker", "endpoint"])
@pytest.mark.parametrize("url", ["http://host:port", "http://[::1"])
def test_an_address_that_is_none(url: str, kind: str, fake: FakeTinkerServer, lab_folder: Path) -> None:
    policy = (
        {"base_url": url} if kind == "tinker" else {"base_url": url, "kind": "local", "sampler": "endpoint", "lora_rank": 0}
    )
    not_opened(recipe_for(fake, lab_folder, **policy), "policy.base_url", url)


def test_a_fault_that_names_a_process_by_its_rank(fake: FakeTinkerServer, lab_folder: Path) -> None:
    fake.create_fault = "[rank0]: CUDA out of memory"
    line = not_opened(recipe_for(fake, lab_folder), None, fake.url, "[rank0]: CUDA out of memory")
    assert not line.startswith("policy.lora_rank")


def test_a_long_fault_is_shown_in_part_and_known_by_its_last_words(fake: FakeTinkerServer, lab_folder: Path) -> None:
    fake.create_fault = "Traceback\n" + "  a line of it\n" * 1000 + "ValueError: lora_rank is too high"
    line = not_opened(recipe_for(fake, lab_folder), "policy.lora_rank", " 8:")
    assert len(line) < 1500


def test_a_server_of_another_kind(fake: FakeTinkerServer, lab_folder: Path) -> None:
    url = f"{fake.url}/elsewhere"
    not_opened(recipe_for(fake, lab_folder, base_url=url), "policy.base_url", url, "/api/v1/healthz")


def test_another_model(fake: FakeTinkerServer, lab_folder: Path) -> None:
    fake.served = "Qwen/Qwen3-4B"
    not_opened(recipe_for(fake, lab_folder), "model.path", fake.url, "Qwen/Qwen3-4B")
    other = "Qwen/Qwen3-8B"
    not_opened(recipe_for(fake, lab_folder, base_model=other), "policy.base_model", fake.url, "Qwen/Qwen3-4B", other)


def test_a_model_under_another_name(fake: FakeTinkerServer, lab_folder: Path) -> None:
    fake.served = "served-name"

    async def work() -> None:
        async with opened(recipe_for(fake, lab_folder, base_model="served-name")):
            assert fake.models

    run(work)


def test_a_context_longer_than_the_models(fake: FakeTinkerServer, lab_folder: Path) -> None:
    not_opened(recipe_for(fake, lab_folder), "limits.context_tokens", str(1 << 20), capacity=1 << 20)


def test_a_context_that_nobody_tells(fake: FakeTinkerServer, lab_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server lists none, and a GGUF file has no configuration beside it."""
    monkeypatch.setattr(tinker_policy, "context_in", lambda _: None)

    async def work() -> None:
        async with opened(recipe_for(fake, lab_folder)) as policy:
            assert (await policy.sample([1], TURN)).stopped

    run(work)


def test_a_server_that_refuses_the_first_turn(fake: FakeTinkerServer, lab_folder: Path) -> None:
    """Where means are taken, each refresh samples one token; that it is refused is nobody's turn's fault."""
    fake.refuses_turns = True
    not_opened(recipe_for(fake, lab_folder, loss_reduction="sequence_mean"), None, fake.url, "a turn", "no such prompt")
    assert not fake.models  # what was opened for nothing is freed


@pytest.mark.parametrize("rank", [0, 64])
def test_a_rank_that_the_server_does_not_train(rank: int, fake: FakeTinkerServer, lab_folder: Path) -> None:
    not_opened(recipe_for(fake, lab_folder, lora_rank=rank), "policy.lora_rank", f" {rank}:", "must be between 1 and 32")


def test_a_state_that_the_server_does_not_have(fake: FakeTinkerServer, lab_folder: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "step_000001"

    async def work() -> None:
        async with opened(recipe_for(fake, lab_folder)) as policy:
            await policy.save(checkpoint)

    run(work)
    fake.states.clear()
    not_opened(recipe_for(fake, lab_folder), state_of(checkpoint), fake.url, checkpoint=checkpoint)
    assert not fake.models  # the model that was to take the state is freed
    not_opened(
        recipe_for(fake, lab_folder, lora_rank=16), str(checkpoint), "lora_rank 8", "lora_rank 16", checkpoint=checkpoint
    )
    (checkpoint / "tinker.json").write_text("{")
    not_opened(recipe_for(fake, lab_folder), str(checkpoint / "tinker.json"), "JSONDecodeError", checkpoint=checkpoint)
    not_opened(recipe_for(fake, lab_folder), str(lab_folder), "tinker.json", "policy.kind", checkpoint=lab_folder)


def test_a_key_of_the_wrong_form(fake: FakeTinkerServer, lab_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASTER_POLICY_KEY", "secret")
    line = not_opened(recipe_for(fake, lab_folder), "ASTER_POLICY_KEY", "tml-")
    assert "secret" not in line


def test_the_extra_is_not_installed(fake: FakeTinkerServer, lab_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("aster.engines.tinker.engine")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tinker", None)
    not_opened(recipe_for(fake, lab_folder), "policy.kind", "pip install 'tinker<")


@pytest.mark.parametrize(
    ("changes", "field", "named"),
    [
        ({"policy": {"sampler": "vllm"}}, "policy.sampler", "vllm"),
        ({"policy": {"base_url": ""}}, "policy.base_url", "''"),
        ({"policy": {"base_url": "10.0.0.5:8000"}}, "policy.base_url", "10.0.0.5:8000"),
        ({"policy": {"lora_alpha": 16.0}}, "policy.lora_alpha", "32"),
        ({"rollout": {"deterministic": True}}, "rollout.deterministic", "policy.kind"),
    ],
)
def test_what_does_not_go_together(changes: dict[str, Any], field: str, named: str) -> None:
    policy = {"kind": "tinker", "base_url": "http://host:8000", "lora_rank": 8}
    data = {**changes, "policy": {**policy, **changes.get("policy", {})}}
    with refused(field, named):
        validate_recipe(data, "here")


def test_a_failed_connection_is_tried_again_only_where_that_is_safe(fake: FakeTinkerServer) -> None:
    """The client gives up by itself after some minutes: then the policy decides."""
    calls: list[str] = []

    async def call() -> str:
        calls.append("")
        if len(calls) == 1:
            raise tinker.APIConnectionError(request=None)
        return "done"

    async def work() -> None:
        service = Service(fake.url, 30.0)
        await service.connect()
        try:
            assert await service.ask("a turn", call, repeat=True, turn=True) == "done"
            assert len(calls) == 2
            calls.clear()
            with pytest.raises(EngineLost, match="an optimizer step") as lost:
                await service.ask("an optimizer step", call)
            assert isinstance(lost.value.__cause__, tinker.APIConnectionError)
            assert len(calls) == 1
        finally:
            await service.close()

    run(work)
