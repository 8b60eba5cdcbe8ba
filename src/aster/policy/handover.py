"""The folder through which weights pass to another process: where it is, and what is written into it."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, zeros_like

SHARED_MEMORY = Path("/dev/shm")
SPARE_BYTES = 1 << 28
"""Shared memory to leave to others."""


def weights_bytes(model: Any) -> int:
    """Bytes of the parameters."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def roomy_directory(size: int) -> Path:
    """Memory where it has room for ``size`` bytes twice (the new weights are written beside the old), else the disk."""
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
    return SHARED_MEMORY if free > 2 * size + SPARE_BYTES else Path(tempfile.gettempdir())


def untie(folder: Path, output: Tensor) -> None:
    """Give a ``transformers`` folder with tied embeddings an output layer of its own, ``output`` (V, D)."""
    save_file({"lm_head.weight": output.detach().cpu().contiguous()}, folder / "lm_head.safetensors", {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.exists():
        listed = json.loads(index.read_text(encoding="utf-8"))
        listed["weight_map"]["lm_head.weight"] = "lm_head.safetensors"
        index.write_text(json.dumps(listed), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}), encoding="utf-8")


def blank(folder: Path) -> None:
    """Make every weight of a folder zero."""
    for file in folder.glob("*.safetensors"):
        # Beside it first: the tensors that were read are the file itself.
        partial = file.with_suffix(".partial")
        save_file({name: zeros_like(tensor) for name, tensor in load_file(file).items()}, partial, {"format": "pt"})
        partial.replace(file)
