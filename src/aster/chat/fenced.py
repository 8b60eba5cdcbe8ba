"""ToRA's form: code in a fence named ``python``, results in a fence named ``output``."""

from __future__ import annotations

from aster.chat.writing import Blocks

INSTRUCTIONS = (
    "Solve the problem step by step. You may run Python code: write it in a block that begins with ```python and ends with "
    "```, and stop there. Its output is given back in a block that begins with ```output. The session keeps its variables from "
    "one block to the next. Put the final answer in \\boxed{}."
)

# A fence must be on a line of its own, so that backticks inside the code do not end it.
FENCED = Blocks(
    opening=r"(?m:^)[ \t]*```(?:python|py|Python)[ \t]*\n",
    closing=r"(?m:^)[ \t]*```[ \t]*(?:\n|\Z)",
    result_opening=r"(?m:^)[ \t]*```output[ \t]*(?:\n|\Z)",
    result_closing=r"(?m:^)[ \t]*```[ \t]*(?:\n|\Z)",
    call_form=("```python\n", "\n```"),
    result_form=("```output\n", "\n```"),
    instructions=INSTRUCTIONS,
    stop=("```output",),
    stop_closes="\n```",
)
