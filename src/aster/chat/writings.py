"""How models write tool calls in their text, where no server takes them out: one file for each way.

    code      <code> ... </code>, results in <interpreter> ... </interpreter>          (ReTool)
    fenced    ```python ... ```, results in ```output ... ```                          (ToRA)
    harmony   <|channel|> ... to=python ... <|message|> ... <|call|>                   (GPT-OSS, raw)
    chatml    <think>, <tool_call>, results in <tool_response>                         (Qwen3, decoded)

Each can be read turn by turn, as a teacher writes it, and as one text with the results in it, as data sets hold it.
"""

from aster.chat.chatml import CHATML
from aster.chat.code import CODE
from aster.chat.fenced import FENCED
from aster.chat.harmony import HARMONY, without_marks
from aster.chat.writing import Exchange, Writing

__all__ = ["CHATML", "CODE", "FENCED", "HARMONY", "WRITINGS", "Exchange", "Writing", "without_marks"]

WRITINGS: dict[str, Writing] = {"code": CODE, "fenced": FENCED, "harmony": HARMONY}
"""The ways in which a teacher may write, by the name that the recipe gives them."""
