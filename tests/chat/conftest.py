"""Fixtures: the lab's tokenizer, and one with byte-pair merges like those of large models."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from aster.chat.qwen3 import CHAT_TEMPLATE, SYSTEM_TOOLS, render_call
from aster.lab.tokenizer import CONTROL, TAGS, build_tokenizer

CORPUS = [
    SYSTEM_TOOLS,
    "assistant\nuser\nsystem\n\n\n\n",
    render_call("import sympy\nfor i in range(10):\n    print(i)\n\nsum(x)"),
    "The answer is \\boxed{42}.\n\nLet me think.\nWait,\n\n\n",
]


def merging_tokenizer() -> Any:
    """Byte-level BPE with a few hundred merges, including merges of newlines."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(CORPUS * 5, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False))
    core.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in CONTROL])
    core.add_tokens([AddedToken(text, normalized=False, special=False) for text in TAGS])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", clean_up_tokenization_spaces=False)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session", params=["lab", "merging"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """Each of the two tokenizers."""
    return build_tokenizer() if request.param == "lab" else merging_tokenizer()
