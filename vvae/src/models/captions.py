"""Captions of the text-guided models: embeddings that are passed in, cached in a file, or made by T5."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import VVAEError
from ..modules.attention_temporal_videoae import TEXT_WIDTH, Text, mask_bias
from ..modules.t5 import NAME, T5Embedder
from .settings import ModelSettings


class Captions:
    """Text conditioning; mixed into the autoencoder. The text encoder is no submodule and is made on first use."""

    config: ModelSettings
    text_encoder: str = NAME  # or the folder that holds it
    _embedder: T5Embedder | None = None
    _no_caption: tuple[Tensor, Tensor] | None = None

    def encode_text(
        self, captions: str | Sequence[str], clean: bool = True, local_files_only: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Embeddings (B, L, 1024) and mask (B, L) of captions, by the model's `text_encoder` (needs transformers).

        clean: normalise the captions as in the training of the published models. Keep the result with
        `vvae.save_text` to work without T5 later.
        """
        if self._embedder is None:
            self._embedder = T5Embedder(
                self.config.t5_model_max_length, self.text_encoder, local_files_only=local_files_only
            )
        captions = [captions] if isinstance(captions, str) else list(captions)
        return self._embedder(captions, clean, next(self.parameters()).device)

    def prepare_text(self, embeddings: Tensor | None, mask: Tensor | None, like: Tensor) -> Text | None:
        """Text for a forward pass on `like`; None for a model without captions.

        Raises VVAEError when a text-guided model gets no text and no T5 is installed to embed the empty caption.
        """
        if not self.config.caption_guide:
            if embeddings is not None:
                raise VVAEError("this model takes no captions; leave text_embeddings out, or use a _cap configuration")
            return None
        if embeddings is None:
            embeddings, mask = self._empty_caption()
        if embeddings.dim() != 3 or embeddings.shape[2] != TEXT_WIDTH:
            raise VVAEError(f"text_embeddings must be (B, L, {TEXT_WIDTH}), found {tuple(embeddings.shape)}")
        if len(embeddings) not in (1, len(like)):
            raise VVAEError(f"{len(embeddings)} captions were given for {len(like)} clips")
        embeddings = embeddings.to(like).expand(len(like), -1, -1)
        if mask is not None and mask.shape[-1] != embeddings.shape[1]:
            raise VVAEError(f"text_attn_mask has {mask.shape[-1]} tokens, text_embeddings {embeddings.shape[1]}")
        mask = None if mask is None else mask.to(like.device).expand(len(like), -1)
        return Text(embeddings, mask_bias(mask, torch.float32))

    def _empty_caption(self) -> tuple[Tensor, Tensor]:
        if self._no_caption is None:
            try:
                self._no_caption = self.encode_text("", local_files_only=True)
            except VVAEError as error:
                raise VVAEError(
                    "this model is guided by captions: pass text_embeddings (made once with encode_text and "
                    f"save_text); the empty caption cannot be embedded here ({error})"
                ) from error
        return self._no_caption
