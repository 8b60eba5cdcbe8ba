"""The folder that hands weights to another process: where to put it, and how to write it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, zeros_like

from aster.run import replacing

SHARED_MEMORY = Path("/dev/shm")
SPARE_BYTES = 1 << 28
"""Bytes of shared memory to leave to other programs."""


def weights_bytes(model: Any) -> int:
    """The size of a model's parameters in bytes."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def roomy_directory(size: int) -> Path:
    """Shared memory if it has room for ``size`` bytes twice (new weights are written next to the old ones), else a folder on
    disk."""
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
    return SHARED_MEMORY if free > 2 * size + SPARE_BYTES else Path(tempfile.gettempdir())


def write_merged(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model that has PEFT's LoRA adapters as a ``transformers`` folder without adapters: their products are added to
    copies of the weights. The model itself is not changed."""
    names = {name.replace(".base_layer.", "."): name for name in model.state_dict() if ".lora_" not in name}
    present = model.state_dict()
    merged = {name: present[original] for name, original in names.items()}
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            (adapter,) = module.active_adapters
            base = module.get_base_layer().weight.detach()
            # Add in float32, the adapters' type. Store each sum in the base's type, off the GPU.
            merged[f"{name}.weight"] = (base + module.get_delta_weight(adapter).detach()).to(base.dtype).cpu()
    with replacing(folder) as partial:
        model.save_pretrained(partial, state_dict=merged)
        tokenizer.save_pretrained(partial)


def untie(folder: Path, output: Tensor) -> None:
    """Give a ``transformers`` folder with tied embeddings an output layer of its own, ``output`` (V, E)."""
    layer = {"lm_head.weight": output.detach().cpu().contiguous()}
    index = folder / "model.safetensors.index.json"
    if index.exists():
        save_file(layer, folder / "lm_head.safetensors", {"format": "pt"})
        listed = json.loads(index.read_text(encoding="utf-8"))
        listed["weight_map"]["lm_head.weight"] = "lm_head.safetensors"
        index.write_text(json.dumps(listed), encoding="utf-8")
    else:
        _rewrite(folder / "model.safetensors", lambda tensors: {**tensors, **layer})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}), encoding="utf-8")


def blank(folder: Path) -> None:
    """Set every weight in a folder to zero."""
    for file in folder.glob("*.safetensors"):
        _rewrite(file, lambda tensors: {name: zeros_like(tensor) for name, tensor in tensors.items()})


def _rewrite(file: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Change the tensors of a file. The result goes to a new file first, because the tensors that were read are mapped to the
    old one."""
    partial = file.with_suffix(".partial")
    save_file(change(load_file(file)), partial, {"format": "pt"})
    partial.replace(file)
