"""The text of a trajectory's tokens, through the run's own tokenizer file and without torch."""

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
    """The decoded text of every turn, special tokens included; as long as ``trajectory.turns``.

    Raises UserError where the run folder holds no tokenizer (``tokenizer/tokenizer.json``).
    """
    tokenizer = run_tokenizer(run)
    return [
        tokenizer.decode(trajectory.token_ids[turn.start : turn.end], skip_special_tokens=False) for turn in trajectory.turns
    ]


def split_assistant(text: str) -> list[tuple[Kind, str]]:
    """An assistant turn's text as blocks in order: thinking (inside ``<think>``), call (inside ``<tool_call>``), text.

    A block that was cut before its closing tag runs to the end. Where the prompt already opened ``<think>``, what stands
    before a lone ``</think>`` is thinking. Blocks of white space alone are left out.
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
    """The tokenizer that a run folder keeps. UserError where it has none."""
    return load_tokenizer_file(run.path / "tokenizer" / "tokenizer.json")


@functools.lru_cache(maxsize=4)
def load_tokenizer_file(path: Path) -> Tokenizer:
    """A ``tokenizer.json``. UserError where it is missing or broken."""
    from tokenizers import Tokenizer

    if not path.exists():
        raise UserError(f"{path}: no such file; the text of tokens needs the run's tokenizer, which its first stage puts there")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception on a broken file
        raise UserError(f"{path}: not a tokenizer file: {error}") from None
