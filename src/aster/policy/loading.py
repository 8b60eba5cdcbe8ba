"""From a recipe's ``model`` section to a model, its tokenizer and its dialect."""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from aster.chat import Qwen3Dialect
from aster.core.errors import UserError
from aster.core.recipe import Model
from aster.policy.attention import IMPLEMENTATION

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")

# Its bars for loading and saving would tear ours.
transformers_logging.disable_progress_bar()


def resolve(path: str) -> Path:
    """The folder or GGUF file that ``model.path`` names. UserError where there is none."""
    if path == "lab":
        from aster.lab.base import BASE_MODEL

        found = BASE_MODEL
    elif path.startswith("package:"):
        found = _packaged(path.removeprefix("package:"))
    else:
        found = Path(path)
    if not found.exists():
        raise UserError(f"model.path: {path}: no such folder or file (models are never downloaded; give a local one)")
    if found.is_dir():
        if not (found / "config.json").exists():
            raise UserError(f"model.path: {path}: not a transformers folder (it has no config.json)")
        if not any(next(found.glob(pattern), None) for pattern in WEIGHTS):
            raise UserError(f"model.path: {path}: the folder has no weights (*.safetensors)")
    elif found.suffix != ".gguf":
        raise UserError(f"model.path: {path}: a file must be a .gguf; give the folder for other formats")
    return found


def _packaged(name: str) -> Path:
    """The one GGUF file inside an installed Python package."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"model.path: package:{name}: no such package; install it (pip install {name.replace('_', '-')})")
    files = sorted(Path(spec.submodule_search_locations[0]).rglob("*.gguf"))
    if len(files) != 1:
        raise UserError(f"model.path: package:{name}: the package holds {len(files)} .gguf files, not one")
    return files[0]


def _location(path: Path) -> tuple[str, dict[str, Any]]:
    """What ``from_pretrained`` wants."""
    if path.is_file():
        if importlib.util.find_spec("gguf") is None:
            raise UserError(f"model.path: {path.name}: reading GGUF needs the package gguf; install it (pip install 'aster-tir[gguf]')")
        return str(path.parent), {"gguf_file": path.name}
    return str(path), {}


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a folder or GGUF file."""
    where, settings = _location(path)
    try:
        return AutoTokenizer.from_pretrained(where, local_files_only=True, **settings)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model.path: {path}: its tokenizer cannot be loaded: {_line(error)}") from error


def make_dialect(tokenizer: Any) -> Qwen3Dialect:
    """The dialect for a tokenizer: thinking is opened for the model where its own template does so.

    A tokenizer without the ChatML control tokens is refused; one with them but without a tool template (SmolLM2) is spoken to
    in the Qwen3 dialect all the same, which SFT then teaches."""
    template = tokenizer.chat_template
    opened = False
    if template:
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True)
        opened = prompt.endswith("<think>\n")
    try:
        return Qwen3Dialect(tokenizer, open_thinking=opened)
    except ValueError as error:
        raise UserError(f"model.path: {error}") from None


def load_model(path: Path, settings: Model) -> Any:
    """The causal language model, on its device, in evaluation mode, attending through ``aster``."""
    where, extra = _location(path)
    previous = logging.getLogger("transformers").level
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        config = AutoConfig.from_pretrained(where, local_files_only=True, **extra)
        if "full_attention" not in (getattr(config, "layer_types", None) or ["full_attention"]):
            raise UserError(f"model.path: {path}: only decoders with full attention are supported, this is {config.model_type}")
        model = AutoModelForCausalLM.from_pretrained(
            where,
            local_files_only=True,
            attn_implementation=IMPLEMENTATION,
            dtype=getattr(torch, settings.dtype),
            **extra,
        )
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"model.path: {path}: the model cannot be loaded: {_line(error)}") from error
    finally:
        logging.getLogger("transformers").setLevel(previous)
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("model.device: cuda was asked for, and torch sees no GPU; use device=cpu or auto")
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.to(device).eval()


def _line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
