"""The model that tosses coins, with or without the tool, and commands that start at once."""

from __future__ import annotations

from tests.stages.conftest import coin_model, coin_problems, commands

__all__ = ["coin_model", "coin_problems", "commands"]
