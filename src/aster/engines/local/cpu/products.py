"""The linear layers of the sampler's step: several of one input as one product, with LoRA adapters where there are any.

The joined weights are no copies: :func:`join` lays them out side by side in memory and the model's parameters become views of
that, so that training changes both. Large ones are packed besides, on a CPU: a product of a few rows with a matrix in oneDNN's
own layout takes a half to a quarter of the time that it takes with a plain one. That is a copy, for as long as turns are
sampled.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PACKED_FROM = 1 << 18
"""Numbers in a weight from which on packing pays: below, oneDNN takes longer to begin than to compute."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """What LoRA adds to some of the outputs: ``scaling * up (down inputs)``."""

    outputs: slice
    ranks: slice
    up: Tensor
    """(outputs, rank)."""
    scaling: float


class Product:
    """``inputs weight^T + bias`` of linear layers with the same inputs, one behind the other."""

    def __init__(self, layers: list[Any]) -> None:
        """Layers that :func:`computable` says yes to. To be renewed before the first use."""
        self._layers = layers
        self._packed: Tensor | None = None
        self._packed_of: list[tuple[int, int]] = []

    def renew(self) -> None:
        """Take the parameters as they are now."""
        layers = self._layers
        plain = [_plain(layer) for layer in layers]
        self.weight = join([layer.weight for layer in plain])
        biases = [layer.bias for layer in plain if layer.bias is not None]
        self.bias = join(biases) if biases else None
        self.adapters: list[Adapter] = []
        self.down: Tensor | None = None
        """(ranks, inputs): of all adapters."""
        self._pack([layer.weight for layer in plain])
        if layers[0] is plain[0]:
            return
        names = [layer.active_adapters[0] for layer in layers]
        downs = [layer.lora_A[name].weight for layer, name in zip(layers, names, strict=True)]
        self.down = join(downs)
        output = rank = 0
        for layer, name, down in zip(layers, names, downs, strict=True):
            up = layer.lora_B[name].weight
            places = slice(output, output + len(up)), slice(rank, rank + len(down))
            self.adapters.append(Adapter(*places, up, layer.scaling[name]))
            output, rank = output + len(up), rank + len(down)

    def __call__(self, inputs: Tensor) -> Tensor:
        """inputs (N, I) -> (N, O)."""
        if self._packed is None:
            outputs = F.linear(inputs, self.weight, self.bias)
        else:
            outputs = torch.ops.mkldnn._linear_pointwise(inputs, self._packed, self.bias, "none", [], "")
        if self.down is None:
            return outputs
        # In the adapters' type, which is float32 where the weights may be bfloat16, as PEFT does it.
        low = F.linear(inputs.to(self.down.dtype), self.down)
        for adapter in self.adapters:
            part, ranks = outputs[:, adapter.outputs], low[:, adapter.ranks]
            if part.dtype == low.dtype:
                part.addmm_(ranks, adapter.up.t(), alpha=adapter.scaling)
            else:
                part.copy_(torch.addmm(part.to(low.dtype), ranks, adapter.up.t(), alpha=adapter.scaling))
        return outputs

    def added_to(self, hidden: Tensor, inputs: Tensor) -> Tensor:
        """hidden (N, O) and the product."""
        if self.down is not None or self.bias is not None or self._packed is not None:
            return hidden + self(inputs)
        return torch.addmm(hidden, inputs, self.weight.t())

    def release(self) -> None:
        """Give up the copy; :meth:`renew` makes another."""
        self._packed = None

    def _pack(self, parameters: list[Tensor]) -> None:
        """Have a packed copy of the weight, where that pays."""
        if self.weight.numel() < PACKED_FROM or not _can_be_packed(self.weight):
            self._packed = None
            return
        state = [(parameter.data_ptr(), parameter._version) for parameter in parameters]
        if self._packed is None or self._packed_of != state:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())
            self._packed_of = state


def _can_be_packed(weight: Tensor) -> bool:
    """Whether oneDNN has a layout of its own for such a weight, and torch a way to it: the operator of compiled models."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or platform.machine() != "x86_64":
        return False
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def computable(layers: list[Any]) -> bool:
    """Whether they can be one :class:`Product`."""
    plain = [_plain(layer) for layer in layers]
    if any(type(layer) is not nn.Linear for layer in plain):
        return False
    adapted = {layer is not inner for layer, inner in zip(layers, plain, strict=True)}
    return len(adapted) == 1 and len({layer.bias is None for layer in plain}) == 1


def _plain(layer: Any) -> Any:
    """The linear layer inside PEFT's, where that is plain LoRA with one adapter; else the layer."""
    if not hasattr(layer, "lora_A") or layer.merged or layer.disable_adapters or len(layer.active_adapters) != 1:
        return layer
    (name,) = layer.active_adapters
    ordinary = name in layer.lora_A and name not in layer.lora_variant and layer.lora_B[name].bias is None
    return layer.get_base_layer() if ordinary else layer


def join(parameters: list[nn.Parameter]) -> Tensor:
    """One tensor of all rows, of which the parameters are views from now on. Where they are such views already, it is found."""
    first = parameters[0].data
    rows = [len(parameter) for parameter in parameters]
    step = first[0].numel() * first.element_size() if first.dim() > 1 else first.element_size()
    places = [parameter.data_ptr() for parameter in parameters]
    expected = [places[0] + step * sum(rows[:index]) for index in range(len(rows))]
    storage = first.untyped_storage()
    within = all(p.data.untyped_storage().data_ptr() == storage.data_ptr() for p in parameters)
    if within and places == expected and all(parameter.is_contiguous() for parameter in parameters):
        return first.as_strided((sum(rows), *first.shape[1:]), first.stride(), first.storage_offset())
    joined = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(parameters, joined.split(rows), strict=True):
        parameter.data = part
    return joined
