"""The sampler's forward pass: the model's own, over the key-value cache, on any device."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from aster.engines.local.cache import Chunk, DecodeLayout, KeyValueCache


class Decoder:
    """Computes one step for any ``transformers`` decoder. :mod:`aster.engines.local.cpu` has a faster one for a CPU."""

    def __init__(self, model: Any, cache: KeyValueCache) -> None:
        """``model`` must have been loaded with :data:`aster.engines.local.attention.IMPLEMENTATION`."""
        self.model, self.cache = model, cache

    def refresh_weights(self) -> None:
        """Take the parameters as they are now. To be called before the first step and after every change of them."""

    def release_weights(self) -> None:
        """Free all copies of weights, until the next :meth:`refresh_weights`."""

    def __call__(self, token_ids: Tensor, chunks: list[Chunk]) -> Tensor:
        """Feed token_ids (P,), whose places ``chunks`` tell, shortest chunk first; returns the hidden states after the last
        norm (P, E). To be called under ``torch.inference_mode``."""
        return self._model_forward(token_ids, DecodeLayout(self.cache, chunks))

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (B, E) -> (B, V)."""
        return self.model.get_output_embeddings()(hidden)

    def _model_forward(self, token_ids: Tensor, layout: DecodeLayout) -> Tensor:
        """The hidden states (P, E) by ``transformers``."""
        return self.model.base_model(
            input_ids=token_ids[None], position_ids=layout.positions[None], use_cache=False, layout=layout
        ).last_hidden_state[0]
