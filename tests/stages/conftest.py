"""A model that can be trained by RL in seconds: it tosses coins, with and without the tool."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from aster.chat import Qwen3Dialect
from tests.once import once
from tests.stages.runs import SETTINGS, Commands, Tiny, merged
from tests.stages.taught import teach_model


@pytest.fixture(scope="session")
def coin_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers in the lab's architecture that answer ``Toss N`` with 0 or 1 at random, half of the time after one cell."""
    from aster.engines import TrainingSample

    def toss(dialect: Qwen3Dialect, rng: random.Random) -> TrainingSample:
        ids = dialect.prompt_ids(f"Toss {rng.randrange(10)}")
        mask = [0] * len(ids)
        spans = [(dialect.turn_ids("end", f"\\boxed{{{rng.randrange(2)}}}", []), 1)]
        if rng.random() < 0.5:
            spans = [(dialect.turn_ids("run", "", ["v=1\nv"]), 1), (dialect.tool_ids(["1"]), 0), *spans]
        for span, trained in spans:
            ids = ids + span
            mask += [trained] * len(span)
        return TrainingSample(ids, mask, 1.0)

    return once(tmp_path_factory, "coin", lambda folder: teach_model(folder, toss, steps=60, batch=12))


@pytest.fixture(scope="session")
def coin_problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight tosses; the answer is always 1."""
    lines = [json.dumps({"id": f"coin-{i}", "prompt": f"Toss {i}", "answer": "1"}) for i in range(8)]
    return once(tmp_path_factory, "coins.jsonl", lambda path: path.write_text("".join(f"{line}\n" for line in lines)))


@pytest.fixture(scope="session")
def tiny(coin_model: Path, coin_problems: Path) -> Tiny:
    """The recipe of seconds."""
    paths = {"model.path": coin_model, "problems.train": coin_problems, "problems.evaluate": coin_problems}
    return Tiny(merged(SETTINGS, {key: str(path) for key, path in paths.items()}))


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """The command line, in processes that start at once."""
    return Commands(tmp_path_factory.mktemp("commands"))
