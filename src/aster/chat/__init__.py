"""Tokens in, tokens out: how a dialogue with the tool is written for a model."""

from aster.chat.qwen3 import AssistantTurn, ParsedCall, Qwen3Dialect, Tokenizer

__all__ = ["AssistantTurn", "ParsedCall", "Qwen3Dialect", "Tokenizer"]
