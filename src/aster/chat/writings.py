"""Text forms for tool calls, for models whose server does not parse their calls. One file per form.

    code      <code> ... </code>, results in <interpreter> ... </interpreter>          (ReTool)
    fenced    ```python ... ```, results in ```output ... ```                          (ToRA)
    harmony   <|channel|> ... to=python ... <|message|> ... <|call|>                   (GPT-OSS, raw)
    chatml    <think>, <tool_call>, results in <tool_response>                         (Qwen3, decoded)

Each form can be parsed turn by turn, as a teacher writes it, and as one text with results, as data sets store it.
"""

from aster.chat.chatml import CHATML
from aster.chat.code import CODE
from aster.chat.fenced import FENCED
from aster.chat.harmony import HARMONY, without_marks
from aster.chat.writing import Exchange, Writing

__all__ = ["CHATML", "CODE", "FENCED", "HARMONY", "WRITINGS", "Exchange", "Writing", "without_marks"]

WRITINGS: dict[str, Writing] = {"code": CODE, "fenced": FENCED, "harmony": HARMONY}
"""The forms that a teacher may use, by their names in the recipe."""
