"""Decode a trajectory's tokens with the tokenizer file that its run folder keeps. Needs no torch."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from aster.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from aster.evaluation.folder import EvaluationFolder
    from aster.run import RunFolder
    from aster.types import Trajectory

Kind = Literal["thinking", "text", "call"]

_BLOCK = re.compile(r"<(think|tool_call)>(.*?)(?:</\1>|\Z)", re.DOTALL)


def turn_texts(run: RunFolder | EvaluationFolder, trajectory: Trajectory) -> list[str]:
    """Return the decoded text of every turn, special tokens included: one string for each of ``trajectory.turns``.

    Raises UserError if the run folder has no tokenizer (``tokenizer/tokenizer.json``).
    """
    tokenizer = run_tokenizer(run)
    return [
        tokenizer.decode(trajectory.token_ids[turn.start : turn.end], skip_special_tokens=False) for turn in trajectory.turns
    ]


def split_assistant(text: str) -> list[tuple[Kind, str]]:
    """Split an assistant turn into blocks, in order: thinking (inside ``<think>``), call (inside ``<tool_call>``) and text.

    A block without a closing tag runs to the end of the text. If the first tag is ``</think>``, the prompt had opened
    ``<think>``, so everything before the tag is thinking. Blocks that contain only white space are left out.
    """
    closing, opening = text.find("</think>"), text.find("<think>")
    if closing != -1 and (opening == -1 or closing < opening):
        text = "<think>" + text
    blocks: list[tuple[Kind, str]] = []
    end = 0
    for match in _BLOCK.finditer(text):
        blocks.append(("text", text[end : match.start()]))
        blocks.append(("thinking" if match[1] == "think" else "call", match[2]))
        end = match.end()
    blocks.append(("text", text[end:]))
    return [(kind, block.strip("\n")) for kind, block in blocks if block.strip()]


def run_tokenizer(run: RunFolder | EvaluationFolder) -> Tokenizer:
    """Load the tokenizer in a run folder. Raises UserError if there is none."""
    return load_tokenizer_file(run.path / "tokenizer" / "tokenizer.json")


@functools.lru_cache(maxsize=4)
def load_tokenizer_file(path: Path) -> Tokenizer:
    """Load a ``tokenizer.json``. Raises UserError if it is missing or broken."""
    from tokenizers import Tokenizer

    if not path.exists():
        raise UserError(f"{path}: no such file; decoding tokens needs this tokenizer, which the run's first stage writes")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises a plain Exception on a broken file
        raise UserError(f"{path}: not a tokenizer file: {error}") from None
