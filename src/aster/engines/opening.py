"""Opens the policy of a recipe with the engine that the recipe names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from aster.config import EngineConfig
from aster.doors import blame, load, place_of
from aster.engines.base import Engine
from aster.errors import UserError
from aster.extras import install_command


@asynccontextmanager
async def open_engine(
    config: EngineConfig,
    checkpoint: Path | None = None,
    *,
    optimizer: bool = False,
    capacity: int | None = None,
    overlapped: bool = False,
) -> AsyncIterator[Engine]:
    """Open the policy of a recipe at ``checkpoint`` (None: the base model), with the optimizer's state if asked, and close it
    at the end of the with block. ``capacity``: the longest sequence to sample, in tokens; None where nothing is sampled.
    ``overlapped``: the policy is sampled while it is trained. Raises UserError where the engine cannot be opened.
    """
    policy: Engine
    if config.policy.kind == "tinker":
        try:
            from aster.engines.tinker.engine import TinkerEngine
        except ModuleNotFoundError as error:
            if error.name != "tinker":
                raise
            raise UserError(
                "policy.kind: tinker needs the package tinker, which is not installed; "
                f"install it ({install_command('tinker')})"
            ) from None
        policy = await TinkerEngine.connect(config, checkpoint, optimizer=optimizer, capacity=capacity)
    elif config.policy.kind != "local":
        policy = await _own(config, checkpoint, optimizer=optimizer, capacity=capacity, overlapped=overlapped)
    elif config.policy.sampler == "endpoint":
        from aster.engines.endpoint import EndpointEngine

        policy = await EndpointEngine.connect(config, checkpoint, capacity)
    elif config.policy.sampler == "vllm":
        from aster.engines.vllm import start_vllm

        policy = await start_vllm(config, checkpoint, optimizer=optimizer, capacity=capacity, overlapped=overlapped)
    else:
        from aster.engines.local.engine import LocalEngine

        policy = LocalEngine(config, checkpoint, optimizer=optimizer, capacity=capacity, overlapped=overlapped)
    try:
        yield policy
    finally:
        await policy.close()


async def _own(config: EngineConfig, checkpoint: Path | None, **how: Any) -> Engine:
    """Open the user's own engine. Raises UserError where it cannot be opened, or lacks methods of an engine."""
    opener = load(config.policy.kind, {}, "policy.kind")
    expected = "an async function (config, checkpoint, *, optimizer, capacity, overlapped, **arguments) -> an Engine"
    try:
        engine = await opener(config, checkpoint, **how, **config.policy.arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"policy.kind: {place_of(opener)}: {blame(error, expected)}") from error
    missing = [name for name in NEEDED if not hasattr(engine, name)]
    if missing:
        raise UserError(f"policy.kind: {place_of(opener)}: it returned a {type(engine).__name__} without {', '.join(missing)}")
    return cast("Engine", engine)


NEEDED = (
    *("dialect", "open", "sample", "release"),
    *("forward", "forward_backward", "optim_step", "save", "pause_sampler", "refresh_sampler", "close"),
)
"""The attributes and methods of :class:`~aster.engines.base.Engine`."""
