"""Shared by all tests: a random tiny model in the lab's architecture, and one warm sandbox with its event loop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from aster import config as recipe
from aster_sandbox import Sandbox
from tests.shop_fixture import Shop
from tests.stages.runs import preload

preload()
# A shell's background processes ignore Ctrl-C, and so would the children that tests send it to.
signal.signal(signal.SIGINT, signal.default_int_handler)
# No test asserts a time, and a machine may stand still for a while.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Tests that share something that takes long to make stay in one test process."""
    from tests.scheduling import Scheduling

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def lab_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``transformers`` folder: the lab's tokenizer and a two-layer model of random weights in the lab's architecture."""
    import torch
    from transformers import Qwen3ForCausalLM

    from aster.lab.build import base_config
    from aster.lab.tokenizer import build_tokenizer

    folder = tmp_path_factory.mktemp("lab") / "model"
    tokenizer = build_tokenizer()
    config = base_config(len(tokenizer))
    config.num_hidden_layers = 2
    config.layer_types = ["full_attention"] * 2
    # Wide weights make peaked distributions, so that a greedy choice does not hang on a rounding error.
    config.initializer_range = 0.15
    config.eos_token_id = tokenizer.eos_token_id
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def shop() -> Iterator[Shop]:
    """A sandbox with short cells."""
    loop = asyncio.new_event_loop()
    settings = recipe.Sandbox(cell_seconds=5.0, memory_mb=256, output_characters=400, sessions=64, preload=[])
    sandbox = loop.run_until_complete(Sandbox(settings).__aenter__())
    yield Shop(loop, sandbox)
    loop.run_until_complete(sandbox.__aexit__(None, None, None))
    loop.close()
