"""The lab's tokenizer: bytes, plus whole phrases as single tokens.

Any text can be written in it (256 byte tokens, so a traceback costs a token a character), and what the lab says often costs
one: the dialect's fixed phrases (the whole tool schema is one token), the words of problems and programs. So a turn of a tiny
model has about 35 tokens in the very text a large model would read. Digits stay single.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from aster.chat.qwen3 import CHAT_TEMPLATE, SYSTEM_TOOLS
from aster.environments.lab import ENDING

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
PHRASES = (
    # the dialect
    SYSTEM_TOOLS,
    "system\n",
    "user\n",
    "assistant\n",
    "\n\n",
    '{"name": "python", "arguments": {"code": "',
    '"}}',
    "\\boxed{",
    # problems
    "Start with ",
    ". Do ",
    ". Rules ",
    ". ask(value) names the next rule, or end",
    ENDING,
    "even ",
    " odd ",
    "Run ",
    # reasoning and code (JSON writes a newline as backslash n)
    "\\n",
    "v=v",
    "v=",
    "v,ask(v)",
    " if v%2==0 else v",
    "R=dict(",
    "for i in range(20):\\n c=ask(v)\\n if c=='end':break\\n v=eval(str(v)+R[c])\\nv",
    "='",
    "',",
    "')",
    "', '",
    ", '",
    "ask",
    "end",
    "run",
    # what the sandbox says when code fails
    "Traceback (most recent call last):\n",
    '  File "<cell ',
    ", line ",
    ", in <module>\n",
    "SyntaxError: invalid syntax",
    "NameError: name '",
    "' is not defined",
)


def build_tokenizer() -> Any:
    """The tokenizer as ``transformers`` knows it, chat template included."""
    from transformers import PreTrainedTokenizerFast

    vocabulary = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in CONTROL])
    core.add_tokens([AddedToken(text, normalized=False, special=False) for text in (*TAGS, *PHRASES)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
