"""Layouts of other projects' sets: read, check and write their rows. One file per layout.

    messages        OpenAI's messages with tools: TRL, verl's SFT, Open-AgentRL       read and written
    llamafactory    ``conversations`` of human, gpt, function_call, observation       read and written
    retool          messages with <code> and <interpreter> in the text                read
    tora            ToRA's output files                                              read
    verl_rollout    rollouts dumped by verl                                          read
    verl_prompts    verl's prompts for RL                                            written

Rows that we write have an extra column ``aster`` for everything that the layout has no place for, so they can be read back
without loss.
"""

from aster.data.formats.base import Layout
from aster.data.formats.llamafactory import LLAMAFACTORY
from aster.data.formats.messages import MESSAGES
from aster.data.formats.retool import RETOOL
from aster.data.formats.tora import TORA
from aster.data.formats.verl import VERL_PROMPTS, VERL_ROLLOUT

LAYOUTS: dict[str, Layout] = {
    layout.name: layout for layout in (MESSAGES, LLAMAFACTORY, RETOOL, TORA, VERL_ROLLOUT, VERL_PROMPTS)
}
"""The layouts by name."""

__all__ = ["LAYOUTS", "Layout"]
