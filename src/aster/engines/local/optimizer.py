"""AdamW with master weights in float32.

A bfloat16 weight has 8 bits of precision: an update smaller than 1/256 of it is lost, and RL's updates are far smaller. So
weights of lower precision have a copy in float32 that the optimizer updates, and gradients are summed in float32 over the
micro-batches (mixed precision training, arXiv 1710.03740). Weights in float32 are their own masters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aster.engines.base import AdamStep


class MasterAdamW:
    """AdamW over a model's trainable parameters."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self.masters = [p if p.dtype == torch.float32 else p.detach().float() for p in parameters]
        self._copied = [(p, master) for p, master in zip(parameters, self.masters, strict=True) if master is not p]
        """Parameters with a separate master, each with it."""
        for parameter, master in self._copied:
            parameter.register_post_accumulate_grad_hook(_Summing(master))
        self.adam = torch.optim.AdamW(self.masters, lr=0.0)

    def step(self, settings: AdamStep) -> float:
        """Clip the gradient, take a step, clear the gradient. Returns the gradient's norm before clipping."""
        for group in self.adam.param_groups:
            group["lr"] = settings.learning_rate
            group["betas"] = (settings.beta1, settings.beta2)
            group["eps"] = settings.eps
            group["weight_decay"] = settings.weight_decay
        norm = torch.nn.utils.clip_grad_norm_(self.masters, settings.max_grad_norm)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self._copy_back()
        return float(norm)

    def state_dict(self) -> dict[str, Any]:
        """AdamW's moments, and the master weights that are not the model's own."""
        return {"adam": self.adam.state_dict(), "masters": [master.detach() for _, master in self._copied]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned. ValueError or LookupError where it is of another model."""
        self.adam.load_state_dict(state["adam"])
        with torch.no_grad():
            for (_, master), saved in zip(self._copied, state["masters"], strict=True):
                master.copy_(saved)

    def _copy_back(self) -> None:
        with torch.no_grad():
            for parameter, master in self._copied:
                parameter.copy_(master)


class _Summing:
    """A hook that moves a parameter's gradient to its master as soon as the backward pass has computed it."""

    def __init__(self, master: Tensor) -> None:
        self.master = master

    def __call__(self, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is None:
            return
        if self.master.grad is None:
            self.master.grad = gradient.float()
        else:
            self.master.grad += gradient
