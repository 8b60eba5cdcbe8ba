"""An engine of your own: the local one, which also writes down every turn that it samples.

    aster run lab policy.kind=examples/own_engine.py:open_logged policy.arguments.file=turns.jsonl

An engine is an object with the methods of ``aster.engines.Engine``; the recipe names an async function that opens it. Most are
clients of a server that samples and trains; this one changes a single method."""

import json
import time
from pathlib import Path

from aster.config import EngineConfig
from aster.engines import Completion, SamplingParams
from aster.engines.local.engine import LocalEngine


class LoggedEngine(LocalEngine):
    file: Path

    async def sample(self, token_ids: list[int], params: SamplingParams) -> Completion:
        began = time.monotonic()
        found = await super().sample(token_ids, params)
        line = {
            "sequence": params.sequence,
            "read": len(token_ids),
            "sampled": len(found.token_ids),
            "seconds": round(time.monotonic() - began, 4),
            "text": self.dialect.decode(found.token_ids),
        }
        with open(self.file, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        return found


async def open_logged(
    config: EngineConfig,
    checkpoint: Path | None,
    *,
    optimizer: bool,
    capacity: int | None,
    overlapped: bool,
    file: str = "turns.jsonl",
) -> LoggedEngine:
    engine = LoggedEngine(config, checkpoint, optimizer=optimizer, capacity=capacity, overlapped=overlapped)
    engine.file = Path(file)
    return engine
