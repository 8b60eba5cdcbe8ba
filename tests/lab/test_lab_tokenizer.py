"""The lab's tokenizer encodes any text without loss, and frequent phrases as single tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from aster.chat import Qwen3Dialect
from aster.chat.qwen3 import SYSTEM_TOOLS, neutralize
from aster.environments.lab import ENDING
from aster.lab.tokenizer import CONTROL, PHRASES, TAGS, build_tokenizer

pieces = st.sampled_from([*CONTROL, *TAGS, *PHRASES, *(phrase[:-1] for phrase in PHRASES), "Ġ", "Ċ", "é", "𝕏", "\x00", "  "])
texts = st.lists(pieces | st.text(max_size=6), max_size=10).map("".join)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


def decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


@given(text=texts)
@settings(max_examples=200, deadline=None)
def test_decoding_inverts_encoding(tokenizer: Any, text: str) -> None:
    assert decode(tokenizer, tokenizer.encode(text, add_special_tokens=False)) == text


@given(text=texts)
@settings(max_examples=50, deadline=None)
def test_the_saved_tokenizer_is_the_same(tokenizer: Any, lab_folder: Path, text: str) -> None:
    saved = AutoTokenizer.from_pretrained(lab_folder)
    assert saved.encode(text, add_special_tokens=False) == tokenizer.encode(text, add_special_tokens=False)
    assert len(saved) == len(tokenizer)


@pytest.mark.parametrize("phrase", [*CONTROL, *TAGS, *PHRASES, *map(chr, range(128))])
def test_phrases_and_characters_are_single_tokens(tokenizer: Any, phrase: str) -> None:
    assert len(tokenizer.encode(phrase, add_special_tokens=False)) == 1


def test_the_tool_schema_is_one_token(tokenizer: Any) -> None:
    dialect = Qwen3Dialect(tokenizer)
    assert len(tokenizer.encode(SYSTEM_TOOLS)) == 1
    # <|im_start|> "system\n" schema <|im_end|> newline
    assert len(dialect.prompt_ids("x")) == len(dialect.prompt_ids("x", tools=False)) + 5


def test_every_digit_is_a_token(tokenizer: Any) -> None:
    assert len(tokenizer.encode("1234567890")) == 10


def test_token_ids_are_contiguous(tokenizer: Any) -> None:
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert tokenizer.eos_token == "<|im_end|>"
    assert neutralize(ENDING) == ENDING
