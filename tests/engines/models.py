"""Two architectures, a policy on each, and ``transformers`` itself as the oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from aster.config import EngineConfig, Model, Rollout
from aster.engines.local.cache import Chunk
from aster.engines.local.decoder import Decoder
from aster.engines.local.sampler import LocalSampler
from aster.lab.tokenizer import build_tokenizer


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another decoder: two key-value heads, heads wider than the hidden size, an output layer of its own."""
    folder = tmp_path_factory.mktemp("llama") / "model"
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=["lab", "llama"])
def folder(request: pytest.FixtureRequest) -> Path:
    """Each of the two."""
    found: Path = request.getfixturevalue(f"{request.param}_folder")
    return found


def recipe_for(folder: Path, slots: int = 8, deterministic: bool = False, **model: Any) -> EngineConfig:
    """A recipe for a folder, on one CPU thread."""
    return EngineConfig(
        model=Model(path=str(folder), device="cpu", threads=1, **model),
        rollout=Rollout(slots=slots, cache_tokens=1 << 14, deterministic=deterministic),
    )


@contextmanager
def before_each_forward(sampler: LocalSampler, look: Callable[[list[int]], None]) -> Iterator[None]:
    """``look`` is given the packed tokens of each of the sampler's forward passes first, and may raise."""
    decoder = sampler.decoder

    class Watched(Decoder):
        def refresh_weights(self) -> None:
            decoder.refresh_weights()

        def release_weights(self) -> None:
            decoder.release_weights()

        def logits(self, hidden: torch.Tensor) -> torch.Tensor:
            return decoder.logits(hidden)

        def __call__(self, token_ids: torch.Tensor, chunks: list[Chunk]) -> torch.Tensor:
            look(token_ids.tolist())
            return decoder(token_ids, chunks)

    sampler.decoder = Watched(decoder.model, decoder.cache)
    yield
    sampler.decoder = decoder


def oracle(folder: Path, attention: str = "eager") -> Any:
    """The same weights in plain ``transformers``."""
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention, dtype=torch.float32).eval()


def oracle_logprobs(model: Any, token_ids: list[int]) -> torch.Tensor:
    """Log-probability of each token but the first, given those before it: (T - 1,)."""
    with torch.no_grad():
        logits = model(torch.tensor([token_ids])).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(-1, torch.tensor(token_ids[1:])[:, None])[:, 0]


def random_ids(seed: int, length: int, vocabulary: int = 250) -> list[int]:
    """Ordinary tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, (length,), generator=generator).tolist()
