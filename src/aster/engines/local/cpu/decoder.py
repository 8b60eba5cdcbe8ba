"""The forward pass of a step in few operations, for float32 on a CPU.

A step of a small model does little arithmetic, and ``transformers`` does it in some eighty small operations a layer, at a few
microseconds each. Here a layer of the common architecture takes about ten: query, key and value are one product, gate and up
another, and norms, rotation and attention are compiled (:mod:`aster.engines.local.cpu.kernels`). LoRA adapters are computed
beside their layers. Other architectures run the model's own forward, with compiled attention.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aster.engines.local.cache import Chunk, KeyValueCache
from aster.engines.local.cpu.kernels import CompiledLayout, Kernels
from aster.engines.local.cpu.linear import FusedLinear, can_fuse
from aster.engines.local.decoder import Decoder

MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""``model_type`` of the architectures whose layers are computed here."""
SWITCH = "ASTER_FAST_CPU"
"""The environment variable that switches this package off, with the value 0."""


def fast_decoder(model: Any, cache: KeyValueCache) -> Decoder | None:
    """The fast decoder for a model and the cache of its sequences; None where there is none: on other devices, for other types
    than float32, without numba, or where it is switched off."""
    if cache.device.type != "cpu" or cache.dtype != torch.float32 or os.environ.get(SWITCH) == "0":
        return None
    try:
        kernels = Kernels(cache.head_dim, cache.capacity, torch.get_num_threads())
    except ImportError:
        return None
    return CpuDecoder(model, cache, kernels)


class CpuDecoder(Decoder):
    """Computes one step on the model's own parameters. Where they are replaced and not changed in place, it must be told by
    :meth:`refresh_weights`."""

    def __init__(self, model: Any, cache: KeyValueCache, kernels: Kernels) -> None:
        super().__init__(model, cache)
        self.kernels = kernels
        self.layers: list[_Layer] = []
        """Empty where the model's own forward is run."""
        self.head: FusedLinear | None = None
        if is_supported(model):
            self.layers = [_Layer(layer, model.config) for layer in model.base_model.layers]
            head = model.get_output_embeddings()
            self.head = FusedLinear([head]) if can_fuse([head]) else None

    @torch.no_grad()
    def refresh_weights(self) -> None:
        """See :class:`Decoder`. Where nothing has changed, it costs next to nothing."""
        for layer in self.layers:
            layer.refresh()
        if self.head is not None:
            self.head.refresh()

    def release_weights(self) -> None:
        """See :class:`Decoder`."""
        for layer in self.layers:
            for linear in layer.linears:
                linear.release()
        if self.head is not None:
            self.head.release()

    def logits(self, hidden: Tensor) -> Tensor:
        """See :class:`Decoder`."""
        return super().logits(hidden) if self.head is None else self.head(hidden)

    def __call__(self, token_ids: Tensor, chunks: list[Chunk]) -> Tensor:
        """See :class:`Decoder`."""
        layout = CompiledLayout(self.cache, chunks, self.kernels)
        if not self.layers:
            return self._model_forward(token_ids, layout)
        base, kernels, epsilon = self.model.base_model, self.kernels, self.model.config.rms_norm_eps
        hidden = F.embedding(token_ids, base.embed_tokens.weight)
        cosine, sine = (part[0] for part in base.rotary_emb(hidden, layout.positions[None]))
        for index, layer in enumerate(self.layers):
            normed = kernels.rms_norm(hidden, layer.input_norm, epsilon)
            projected = layer.qkv(normed).view(len(hidden), -1, self.cache.head_dim)
            query = layout.rotate_and_store(index, projected, layer.head_norms, epsilon, cosine, sine)
            attended = layout.attend_stored(index, query, layer.scaling).reshape(len(hidden), -1)
            hidden = layer.output.add_to(hidden, attended)
            gate, up = layer.gate_up(kernels.rms_norm(hidden, layer.mlp_norm, epsilon)).chunk(2, -1)
            hidden = layer.down.add_to(hidden, F.silu(gate) * up)
        return kernels.rms_norm(hidden, base.norm.weight, epsilon)


class _Layer:
    """The weights of a layer. To be refreshed before the first use."""

    def __init__(self, layer: Any, config: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = FusedLinear([attention.q_proj, attention.k_proj, attention.v_proj])
        """E to (H + 2 KV) D."""
        self.output = FusedLinear([attention.o_proj])
        self.gate_up = FusedLinear([mlp.gate_proj, mlp.up_proj])
        """E to 2 I."""
        self.down = FusedLinear([mlp.down_proj])
        self.linears = [self.qkv, self.output, self.gate_up, self.down]
        self.scaling: float = attention.scaling
        self.head_norms: Tensor | None = None
        """(H + KV, D): the weights of the norms of queries and keys, where the architecture has such norms."""
        self._layer = layer
        self._num_heads, self._num_key_value_heads = config.num_attention_heads, config.num_key_value_heads

    def refresh(self) -> None:
        """See :meth:`Decoder.refresh_weights`."""
        for linear in self.linears:
            linear.refresh()
        self.input_norm: Tensor = self._layer.input_layernorm.weight
        self.mlp_norm: Tensor = self._layer.post_attention_layernorm.weight
        attention = self._layer.self_attn
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm.weight, attention.k_norm.weight
            self.head_norms = torch.cat([query.expand(self._num_heads, -1), key.expand(self._num_key_value_heads, -1)])


def is_supported(model: Any) -> bool:
    """Whether every layer of a model is one that is computed here: linear layers, with LoRA or without, and SiLU."""
    if model.config.model_type not in MODEL_TYPES or model.config.hidden_act != "silu":
        return False
    for layer in model.base_model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        fused = [[attention.q_proj, attention.k_proj, attention.v_proj], [attention.o_proj]]
        fused += [[mlp.gate_proj, mlp.up_proj], [mlp.down_proj]]
        if not all(can_fuse(layers) for layers in fused):
            return False
    return True
