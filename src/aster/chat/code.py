"""ReTool's form: code in ``<code>``, results in ``<interpreter>``. The code may be inside a Markdown fence."""

from __future__ import annotations

from aster.chat.writing import Blocks

INSTRUCTIONS = (
    "Solve the problem step by step. You may run Python: write the code between <code> and </code> and stop there. Its output "
    "is given back between <interpreter> and </interpreter>. The session keeps its variables from one piece of code to the "
    "next. Put the final answer in \\boxed{}."
)

CODE = Blocks(
    opening=r"<code>",
    closing=r"</code>",
    result_opening=r"<interpreter>",
    result_closing=r"</interpreter>",
    call_form=("<code>\n", "\n</code>"),
    result_form=("<interpreter>\n", "\n</interpreter>"),
    instructions=INSTRUCTIONS,
    stop=("</code>",),
    stop_closes="</code>",
)
