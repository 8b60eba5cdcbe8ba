"""The linear layers of the fast path: several with the same input as one product, with their LoRA adapters.

The weights are not copied to be joined: :func:`join_parameters` lays them out one behind the other in memory, and the model's
parameters become views of that, so that training changes both. Large weights are packed as well: a product of a few rows with
a matrix in oneDNN's own layout takes a half to a quarter of the time. That is a copy, which exists while turns are sampled.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_PACKED_ELEMENTS = 1 << 18
"""Elements of a weight from which on packing is faster: below, oneDNN takes longer to start than to compute."""


@dataclass(frozen=True, slots=True)
class LoraUpdate:
    """What LoRA adds to the outputs of one layer: ``scaling * lora_B (lora_A inputs)``."""

    outputs: slice
    """The layer's own, among the outputs of the product."""
    ranks: slice
    """Its own, among the rows of all ``lora_A``."""
    lora_b: Tensor
    """(outputs, R)."""
    scaling: float


class FusedLinear:
    """Float32 linear layers with the same inputs, as one: their outputs one behind the other."""

    def __init__(self, layers: list[Any]) -> None:
        """For layers of which :func:`can_fuse` is true. To be refreshed before the first use."""
        self._layers = layers
        self._packed: Tensor | None = None
        self._packed_state: list[tuple[int, int]] = []
        """Place and version of each parameter when it was packed."""

    def refresh(self) -> None:
        """Take the parameters as they are now."""
        layers = self._layers
        linears = [_base_linear(layer) for layer in layers]
        self.weight = join_parameters([linear.weight for linear in linears])
        biases = [linear.bias for linear in linears if linear.bias is not None]
        self.bias = join_parameters(biases) if biases else None
        self.lora_updates: list[LoraUpdate] = []
        self.lora_a: Tensor | None = None
        """(ranks, inputs): of all adapters."""
        self._pack([linear.weight for linear in linears])
        if layers[0] is linears[0]:
            return
        names = [layer.active_adapters[0] for layer in layers]
        parts = [layer.lora_A[name].weight for layer, name in zip(layers, names, strict=True)]
        self.lora_a = join_parameters(parts)
        output = rank = 0
        for layer, name, part in zip(layers, names, parts, strict=True):
            lora_b = layer.lora_B[name].weight
            places = slice(output, output + len(lora_b)), slice(rank, rank + len(part))
            self.lora_updates.append(LoraUpdate(*places, lora_b, layer.scaling[name]))
            output, rank = output + len(lora_b), rank + len(part)

    def __call__(self, inputs: Tensor) -> Tensor:
        """inputs (P, in) -> (P, out)."""
        if self._packed is None:
            outputs = F.linear(inputs, self.weight, self.bias)
        else:
            outputs = torch.ops.mkldnn._linear_pointwise(inputs, self._packed, self.bias, "none", [], "")
        if self.lora_a is not None:
            low = F.linear(inputs, self.lora_a)
            for update in self.lora_updates:
                outputs[:, update.outputs].addmm_(low[:, update.ranks], update.lora_b.t(), alpha=update.scaling)
        return outputs

    def add_to(self, hidden: Tensor, inputs: Tensor) -> Tensor:
        """The sum of hidden (P, out) and the product."""
        if self.lora_a is not None or self.bias is not None or self._packed is not None:
            return hidden + self(inputs)
        return torch.addmm(hidden, inputs, self.weight.t())

    def release(self) -> None:
        """Free the packed copy; :meth:`refresh` makes another."""
        self._packed = None

    def _pack(self, parameters: list[Tensor]) -> None:
        """Make a packed copy of the weight, where that is faster and there is none of the present parameters."""
        if self.weight.numel() < MIN_PACKED_ELEMENTS or not has_packed_products():
            self._packed = None
            return
        state = [(parameter.data_ptr(), parameter._version) for parameter in parameters]
        if self._packed is None or self._packed_state != state:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())
            self._packed_state = state


def has_packed_products() -> bool:
    """Whether oneDNN has a layout of its own for weights on this machine, and torch the operator (that of compiled models)."""
    if platform.machine() != "x86_64":
        return False
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def can_fuse(layers: list[Any]) -> bool:
    """Whether they can be one :class:`FusedLinear`: all ``nn.Linear``, or all with one ordinary LoRA adapter on such."""
    linears = [_base_linear(layer) for layer in layers]
    if any(type(linear) is not nn.Linear for linear in linears):
        return False
    adapted = {layer is not linear for layer, linear in zip(layers, linears, strict=True)}
    return len(adapted) == 1 and len({linear.bias is None for linear in linears}) == 1


def _base_linear(layer: Any) -> Any:
    """The linear layer inside PEFT's, where that is plain LoRA with one adapter; else the layer."""
    if not hasattr(layer, "lora_A") or layer.merged or layer.disable_adapters or len(layer.active_adapters) != 1:
        return layer
    (name,) = layer.active_adapters
    ordinary = name in layer.lora_A and name not in layer.lora_variant and layer.lora_B[name].bias is None
    return layer.get_base_layer() if ordinary else layer


def join_parameters(parameters: list[nn.Parameter]) -> Tensor:
    """One tensor with the rows of all, of which the parameters are views from now on. Nothing is copied where they are such
    views already."""
    first = parameters[0].data
    rows = [len(parameter) for parameter in parameters]
    step = first[0].numel() * first.element_size() if first.dim() > 1 else first.element_size()
    places = [parameter.data_ptr() for parameter in parameters]
    expected = [places[0] + step * sum(rows[:index]) for index in range(len(rows))]
    storage = first.untyped_storage()
    same = all(parameter.data.untyped_storage().data_ptr() == storage.data_ptr() for parameter in parameters)
    if same and places == expected and all(parameter.is_contiguous() for parameter in parameters):
        return first.as_strided((sum(rows), *first.shape[1:]), first.stride(), first.storage_offset())
    joined = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(parameters, joined.split(rows), strict=True):
        parameter.data = part
    return joined
