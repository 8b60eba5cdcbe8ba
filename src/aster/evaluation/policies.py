"""Makes the attempts of an evaluation: with a policy that samples tokens in our loop, or with a chat endpoint that writes text.

For both, an evaluation gets a function that takes a job and starts an attempt.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from aster.config import Rollout
from aster.environments import Environment
from aster.errors import UserError
from aster.evaluation.folder import EvaluationFolder
from aster.evaluation.settings import Settings, policy_kind
from aster.money import Prices
from aster.rollout import Job, RolloutContext, Rollouts
from aster.rollout.attempts import Attempt
from aster.transcript import Transcript
from aster.types import Trajectory

Start = Callable[[Job], "asyncio.Task[Attempt]"]
"""Starts an attempt as soon as there is room."""


@asynccontextmanager
async def open_attempts(
    settings: Settings,
    checkpoint: Path | None,
    rollout: Rollout,
    environment: Environment,
    folder: EvaluationFolder,
    prices: Prices | None,
) -> AsyncIterator[Start]:
    """Open the policy, with the weights of a ``checkpoint``, and yield its :data:`Start`. Raises UserError where it cannot be
    opened.

    The ``environment`` must be open. The folder gets the tokenizer where attempts are tokens, and the name of the model on a
    server. Transcripts of a chat endpoint contain their cost at the ``prices``."""
    if settings.kind == "chat":
        async with _chat(settings, rollout, environment, folder, prices) as start:
            yield start
        return
    config = settings.engine_config(rollout)
    from aster.engines.opening import open_engine

    if checkpoint is not None and not checkpoint.is_dir():
        raise UserError(f"--checkpoint {checkpoint}: no such folder")
    async with open_engine(config, checkpoint, capacity=settings.context_tokens) as policy:
        folder.keep_tokenizer(policy.dialect.tokenizer)
        if settings.kind == "endpoint":
            from aster.engines.endpoint import EndpointEngine

            assert isinstance(policy, EndpointEngine)
            folder.note(served=policy.sampler.model)
        context = RolloutContext(lambda _: policy, policy.dialect, environment, rollout.slots)
        async with Rollouts(context) as rollouts:
            yield functools.partial(_start, rollouts, settings)


def _start(rollouts: Rollouts, settings: Settings, job: Job) -> asyncio.Task[Trajectory]:
    return rollouts.start(job, settings.budget(), settings.decoding)


@asynccontextmanager
async def _chat(
    settings: Settings, rollout: Rollout, environment: Environment, folder: EvaluationFolder, prices: Prices | None
) -> AsyncIterator[Start]:
    """Attempts by an endpoint that takes and returns text."""
    from aster.teacher.chat import ChatAuthor
    from aster.teacher.spending import Spending

    _, address = policy_kind(settings.policy)
    author = ChatAuthor(
        address,
        settings.model_name,
        concurrency=rollout.slots,
        spending=Spending(prices),
        field=f"--policy {settings.policy}",
    )
    async with author:
        folder.note(served=author.model)

        def start(job: Job) -> asyncio.Task[Transcript]:
            attempt = author.attempt(
                job.problem,
                job.sample,
                job.seed,
                environment=environment,
                budget=settings.budget(),
                decoding=settings.decoding,
            )
            return asyncio.create_task(attempt)

        yield start
