"""A real SkyRL server, where there is one; elsewhere these tests are skipped, and a warning says so."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from aster.config.engine import BASE_MODEL
from tests.cluster.server import ENVIRONMENT, Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serves the lab's base model."""
    if not os.environ.get(ENVIRONMENT):
        reason = f"{ENVIRONMENT} names no server environment: run `make test-cluster` to test against SkyRL's server"
        warnings.warn(f"tests/cluster is SKIPPED: {reason}", stacklevel=1)
        pytest.skip(reason)
    server = Server(tmp_path_factory.mktemp("server"), BASE_MODEL)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Path:
    """The recipe lab cut to minutes: short chains, few steps, through the server."""
    path = tmp_path_factory.mktemp("recipe") / "lab.yaml"
    path.write_text(RECIPE.replace("SERVER", server.url))
    return path


RECIPE = """\
name: cluster
cold_start: aster
model: {path: lab, threads: 1}
policy: {kind: tinker, base_url: SERVER, lora_rank: 16, patience_seconds: 300}
problems: {families: {chain: 1.0}, levels: [2, 3]}
sandbox: {cell_seconds: 2.0, output_characters: 200, preload: []}
rollout: {slots: 32}
synthesize: {problems: 60, limits: {context_tokens: 512, turn_tokens: 256, tool_calls: 8, turns: 10}}
curate: {dense_calls: 1}
sft:
  checkpoint_every: 4
  stages: [{epochs: 2, batch: 8, learning_rate: 2.0e-3, context_tokens: 384}]
rl:
  prompts: 6
  samples: 8
  minibatches: 2
  learning_rate: 2.0e-4
  train_problems: 6           # the same each step: so few steps cannot teach more
  stages: [{steps: 5, limits: {context_tokens: 384, turn_tokens: 64, tool_calls: 4, turns: 5}}]
evaluate:
  {problems: 8, k: 2, temperature: 1.0, top_p: 1.0, limits: {context_tokens: 384, turn_tokens: 64, tool_calls: 4, turns: 5}}
"""
