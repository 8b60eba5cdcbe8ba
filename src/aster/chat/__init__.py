"""Dialects: render a dialogue with the tool as token ids, and parse the token ids of a turn."""

from aster.chat.qwen3 import Qwen3Dialect, Tokenizer
from aster.chat.tools import NO_TOOLS, PYTHON, AssistantTurn, ParsedCall, ToolSchema, ToolSchemas, python_schema

__all__ = [
    "NO_TOOLS",
    "PYTHON",
    "AssistantTurn",
    "ParsedCall",
    "Qwen3Dialect",
    "Tokenizer",
    "ToolSchema",
    "ToolSchemas",
    "python_schema",
]
