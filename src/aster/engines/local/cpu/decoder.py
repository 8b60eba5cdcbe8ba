"""The sampler's forward pass: ``transformers``' own, or, for the common kind of decoder, the same sums in fewer steps.

A step of decoding does little arithmetic, and ``transformers`` does it in many small operations: some eighty a layer, at a few
microseconds each. Where a model is built like Llama (Qwen2, Qwen3 and Mistral are), its layers are computed here in about
twenty: query, key and value in one product, gate and up in another, query and key normalised and rotated together. LoRA's
adapters are computed beside their layers. All else (quantized layers, other architectures) goes through the model's own
forward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aster.engines.local.cache import DecodeLayout
from aster.engines.local.cpu.products import Product, computable

KINDS = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""``model_type`` of the architectures whose layers are computed here."""


class _Layer:
    """The weights of a layer. H hidden size, D head size; Q and K heads of queries and of keys."""

    def __init__(self, layer: Any, decoder: Decoder) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.attention = Product([attention.q_proj, attention.k_proj, attention.v_proj])
        """H to (Q + 2 K) D."""
        self.output = Product([attention.o_proj])
        self.gate_up = Product([mlp.gate_proj, mlp.up_proj])
        """H to 2 I."""
        self.down = Product([mlp.down_proj])
        self.scaling: float = attention.scaling
        self.head_norms: Tensor | None = None
        """(Q + K, D): what normalised queries and keys are multiplied with, where the architecture normalises them."""
        self._layer, self._decoder = layer, decoder

    @property
    def products(self) -> list[Product]:
        """All of them."""
        return [self.attention, self.output, self.gate_up, self.down]

    def renew(self) -> None:
        """See :meth:`Decoder.renew`."""
        for product in self.products:
            product.renew()
        self.first_norm: Tensor = self._layer.input_layernorm.weight
        self.second_norm: Tensor = self._layer.post_attention_layernorm.weight
        attention, decoder = self._layer.self_attn, self._decoder
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm.weight, attention.k_norm.weight
            norms = torch.cat([query.expand(decoder.queries, decoder.size), key.expand(decoder.keys, decoder.size)])
            self.head_norms = norms if self.head_norms is None else self.head_norms.copy_(norms)


class Decoder:
    """Computes hidden states of one step. It must be renewed where parameters were replaced, not changed in place."""

    def __init__(self, model: Any) -> None:
        """For a ``transformers`` decoder. To be renewed before its first use."""
        self.model, self.config = model, model.config
        self.layers: list[_Layer] = []
        self.head: Product | None = None
        self.plain = not _computable(model)
        self.queries = self.config.num_attention_heads
        self.keys = self.config.num_key_value_heads
        self.size = getattr(self.config, "head_dim", None) or self.config.hidden_size // self.queries
        self.epsilon = self.config.rms_norm_eps

    @torch.no_grad()
    def renew(self) -> None:
        """Take the parameters as they are now. Where they are those of the last time, it costs next to nothing, and all that is
        computed with stays where it is in memory, since a captured step reads it there."""
        if self.plain:
            return
        if not self.layers:
            self.layers = [_Layer(layer, self) for layer in self.model.base_model.layers]
            head = self.model.get_output_embeddings()
            self.head = Product([head]) if computable([head]) else None
        for layer in self.layers:
            layer.renew()
        if self.head is not None:
            self.head.renew()

    def release(self) -> None:
        """Give up all copies of weights, until the next :meth:`renew`."""
        for layer in self.layers:
            for product in layer.products:
                product.release()
        if self.head is not None:
            self.head.release()

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (N, H) -> (N, V)."""
        return (self.head or self.model.get_output_embeddings())(hidden)

    def __call__(self, token_ids: Tensor, layout: DecodeLayout) -> Tensor:
        """Hidden states (N, H) after the last norm, for N flat tokens whose places ``layout`` knows.

        To be called under ``torch.inference_mode``."""
        if self.plain:
            return self.model.base_model(
                input_ids=token_ids[None], position_ids=layout.positions[None], use_cache=False, layout=layout
            ).last_hidden_state[0]
        base, heads = self.model.base_model, self.queries + self.keys
        hidden = F.embedding(token_ids, base.embed_tokens.weight)
        rotation = tuple(part[0] for part in base.rotary_emb(hidden, layout.positions[None]))
        steps = _Compiled if layout.cache.kernels else _Plain
        step = steps(self, layout, *rotation)
        for number, layer in enumerate(self.layers):
            normed = step.norm(hidden, layer.first_norm)
            joint = layer.attention(normed).view(len(hidden), heads + self.keys, self.size)
            mixed = step.attend(number, layer, joint).reshape(len(hidden), -1)
            hidden = layer.output.added_to(hidden, mixed)
            gate, up = layer.gate_up(step.norm(hidden, layer.second_norm)).chunk(2, -1)
            hidden = layer.down.added_to(hidden, F.silu(gate) * up)
        return step.norm(hidden, base.norm.weight)


class _Plain:
    """The steps between the matrix products, in torch."""

    def __init__(self, decoder: Decoder, layout: DecodeLayout, cosine: Tensor, sine: Tensor) -> None:
        self.decoder, self.layout = decoder, layout
        self.cosine = cosine[:, None]
        # Rotating by half and changing a sign: the sign goes to the sine, so that one shift is left.
        self.sine = sine[:, None].clone()
        self.sine[..., : decoder.size // 2].neg_()

    def norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """RMS norm of (N, H)."""
        return F.rms_norm(hidden, hidden.shape[1:], weight, self.decoder.epsilon)

    def attend(self, number: int, layer: _Layer, joint: Tensor) -> Tensor:
        """joint (N, Q + 2 K, D) holds queries, keys and values -> (N, Q, D). The cache gets the new keys and values."""
        queries, size = self.decoder.queries, self.decoder.size
        turned = joint[:, : -self.decoder.keys]
        if layer.head_norms is not None:
            turned = F.rms_norm(turned, turned.shape[2:], None, self.decoder.epsilon) * layer.head_norms
        turned = torch.addcmul(turned * self.cosine, turned.roll(size // 2, -1), self.sine)
        query, key = turned[:, :queries].transpose(0, 1), turned[:, queries:].transpose(0, 1)
        value = joint[:, -self.decoder.keys :].transpose(0, 1)
        return self.layout.attend(number, query, key, value, layer.scaling).transpose(0, 1)


class _Compiled:
    """The same, by kernels."""

    def __init__(self, decoder: Decoder, layout: DecodeLayout, cosine: Tensor, sine: Tensor) -> None:
        assert layout.cache.kernels is not None
        self.decoder, self.layout, self.kernels = decoder, layout, layout.cache.kernels
        self.rotation = cosine, sine

    def norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """See :class:`_Plain`."""
        return self.kernels.norm(hidden, weight, self.decoder.epsilon)

    def attend(self, number: int, layer: _Layer, joint: Tensor) -> Tensor:
        """See :class:`_Plain`."""
        cache = self.layout.cache.keys[number], self.layout.cache.values[number]
        query = self.kernels.turn(joint, layer.head_norms, self.decoder.epsilon, self.rotation, self.layout.places, cache)
        return self.layout.mix(number, query, layer.scaling)


def _computable(model: Any) -> bool:
    """Whether every layer is one that is computed here: linear layers, with or without LoRA, and SiLU."""
    if model.config.model_type not in KINDS or model.config.hidden_act != "silu":
        return False
    for layer in model.base_model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        products = [[attention.q_proj, attention.k_proj, attention.v_proj], [attention.o_proj]]
        products += [[mlp.gate_proj, mlp.up_proj], [mlp.down_proj]]
        if not all(computable(layers) for layers in products):
            return False
    return True
