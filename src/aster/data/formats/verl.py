"""verl: the rollouts that it dumps, and the prompts for its RL.

A dumped row has ``input`` and ``output`` (decoded text, with or without special tokens), ``gts`` (the known answer) and
``score``. The output is everything after the first header of the assistant, including tool results.
"""

from __future__ import annotations

import re
from typing import Any

from aster.chat.writings import CHATML
from aster.data.formats.base import Layout, Unreadable, add_exchanges, blank, finish
from aster.data.problems import BOX_REQUEST
from aster.jsonl import Row
from aster.transcript import Transcript

_SPECIAL = re.compile(
    r"(?:<\|im_start\|>system\n(?P<system>.*?)<\|im_end\|>\s*)?<\|im_start\|>user\n(?P<prompt>.*?)<\|im_end\|>", re.DOTALL
)
_BARE = re.compile(
    r"\A(?:system\n(?P<system>.*?)\n)?user\n(?P<prompt>.*)\nassistant\n?(?:<think>)?\s*\Z",
    re.DOTALL,
)
_TOOLS = re.compile(r"\s*# Tools\n.*\Z", re.DOTALL)
"""The part of the system text that the chat template adds for the tools."""


def read(row: Row) -> list[Transcript]:
    """Read a dumped rollout."""
    given, output = row.get("input", row.get("prompt")), row.get("output", row.get("response"))
    if not isinstance(given, str) or not isinstance(output, str):
        raise Unreadable("no input and output")
    match = _SPECIAL.search(given) or _BARE.match(given)
    transcript = blank(row, match["prompt"] if match else given)
    system = _TOOLS.sub("", match["system"] or "") if match else ""
    transcript.system = "" if system in ("You are a helpful assistant.", "You are Qwen, created by Alibaba Cloud.") else system
    add_exchanges(transcript, CHATML.dialogue(output))
    score = row.get("score", row.get("reward"))
    if isinstance(score, int | float):
        transcript.metadata["score"] = score
    if isinstance(row.get("step"), int):
        transcript.metadata["step"] = row["step"]
    return [finish(transcript)]


def write_prompt(transcript: Transcript) -> Row:
    """Return the transcript's problem as a row of prompts for verl's RL."""
    prompt = transcript.prompt
    text = prompt if "\\boxed" in prompt else f"{prompt}\n{BOX_REQUEST}"
    return {
        "data_source": transcript.source or "aster",
        "prompt": [{"role": "user", "content": text}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": transcript.expected},
        "extra_info": {"index": transcript.problem_id, "split": "train"},
    }


def prompt_schema() -> Any:
    """Return the Parquet schema of written rows."""
    import pyarrow as pa

    text = pa.string()
    return pa.schema(
        {
            "data_source": text,
            "prompt": pa.list_(pa.struct({"role": text, "content": text})),
            "ability": text,
            "reward_model": pa.struct({"style": text, "ground_truth": text}),
            "extra_info": pa.struct({"index": text, "split": text}),
        }
    )


VERL_ROLLOUT = Layout("verl_rollout", "rollouts that verl dumped: input, output, score", read)
VERL_PROMPTS = Layout("verl_prompts", "prompts with answers, for verl's RL", None, write_prompt, prompt_schema)
