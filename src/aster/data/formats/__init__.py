"""Sets of others: read into transcripts, checked, and written for other trainers. One file a layout.

    messages        OpenAI's messages with tools: TRL, verl's SFT, Open-AgentRL       read and written
    llamafactory    ``conversations`` of human, gpt, function_call, observation       read and written
    retool          messages with <code> and <interpreter> in the text                read
    tora            ToRA's output files                                              read
    verl_rollout    what verl dumps of its rollouts                                  read
    verl_prompts    verl's prompts for RL                                            written

Written rows hold what the layout has, and a column ``aster`` with what it lacks: so they are read back as they were.
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
"""By name."""

__all__ = ["LAYOUTS", "Layout"]
