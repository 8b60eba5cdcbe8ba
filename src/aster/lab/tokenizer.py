"""The lab's tokenizer: one token per byte, and one token for each phrase that is frequent in the lab.

The 256 byte tokens can encode any text (a traceback takes a token per character). The fixed phrases of the dialect (the whole
tool schema is one token) and the words of problems and programs are single tokens, so that a turn of the tiny model has about
35 tokens, although its text is the same as for a large model. Every digit is a token of its own.
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
    # reasoning and code (in JSON a newline is a backslash and n)
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
    # error messages of the sandbox
    "Traceback (most recent call last):\n",
    '  File "<cell ',
    ", line ",
    ", in <module>\n",
    "SyntaxError: invalid syntax",
    "NameError: name '",
    "' is not defined",
)


def build_tokenizer() -> Any:
    """Return the tokenizer as a ``transformers`` tokenizer with its chat template."""
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
