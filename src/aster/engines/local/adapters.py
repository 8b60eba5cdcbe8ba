"""LoRA adapters (Hu et al. 2021, arXiv 2106.09685), through PEFT: the base model's weights stay, small matrices are trained.

A checkpoint then holds the adapters alone, in PEFT's own format: ``PeftModel.from_pretrained(base, checkpoint)`` reads it, and
``merge_and_unload()`` makes an ordinary model of it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from aster.config import Policy
from aster.errors import UserError
from aster.extras import install_command

WEIGHTS = "adapter_model.safetensors"


def require_peft() -> None:
    """UserError where PEFT is missing."""
    if importlib.util.find_spec("peft") is None:
        raise UserError(f"policy.lora_rank: adapters need the package peft; install it ({install_command('peft')})")


class Adapters:
    """Adapters on every linear layer of a model but the output's; they are put into the model itself."""

    def __init__(self, model: Any, settings: Policy, seed: int) -> None:
        """Fresh adapters, which change nothing yet. UserError where PEFT is missing."""
        require_peft()
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            # In evaluation mode, as the model was: there is no dropout to switch on.
            self._model: Any = get_peft_model(model, config).eval()
        self._rank = settings.lora_rank

    def save(self, folder: Path) -> None:
        """Write them, with their configuration."""
        self._model.save_pretrained(folder, save_embedding_layers=False)

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote. UserError where it does not fit."""
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        file = folder / WEIGHTS
        if not file.exists():
            raise UserError(f"{folder}: the checkpoint holds no adapters ({WEIGHTS}); was it trained with policy.lora_rank=0?")
        try:
            saved = load_file(file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: cannot be read: {error}") from error
        present = get_peft_model_state_dict(self._model, save_embedding_layers=False)
        if {name: tensor.shape for name, tensor in saved.items()} != {name: t.shape for name, t in present.items()}:
            raise UserError(f"{file}: its adapters are not those of this model at policy.lora_rank={self._rank}")
        set_peft_model_state_dict(self._model, saved)
