"""Captions of the text-guided models: embeddings that are passed in, kept on disk, or made by T5.

`Captions` is the part of the autoencoder class that takes them; `CaptionCache` keeps one file per caption, and
`CaptionedClips` are clips that bring theirs along.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .errors import VVAEError
from .models.settings import ModelSettings
from .modules.attention_temporal_videoae import TEXT_WIDTH, Text, mask_bias
from .modules.t5 import NAME, T5Embedder, load_text, save_text

Embed = Callable[[str], tuple[Tensor, Tensor]]


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


class CaptionCache:
    """Embeddings (L, 1024) and mask (L,) by caption, in `<hash of the caption>.safetensors` files of a folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, caption: str) -> Path:
        """The file of a caption."""
        return self.folder / f"{hashlib.sha256(caption.encode()).hexdigest()[:24]}.safetensors"

    def fill(self, captions: Iterable[str], embed: Embed) -> int:
        """Embed the captions that have no file yet; returns their number."""
        missing = [caption for caption in dict.fromkeys(captions) if not self.path(caption).is_file()]
        for caption in missing:
            save_text(self.path(caption), *embed(caption))
        return len(missing)

    def get(self, caption: str) -> tuple[Tensor, Tensor]:
        """The stored embedding and mask. Raises VVAEError where there is none."""
        embeddings, mask = load_text(self.path(caption))
        return embeddings[0], mask[0]


class CaptionedClips(Dataset):
    """Items {video, text_embeddings, text_attn_mask}: clips whose label is their caption (none: the empty caption)."""

    takes_positions = True

    def __init__(self, clips: Any, cache: CaptionCache) -> None:
        self.clips, self.cache = clips, cache

    def __len__(self) -> int:
        return len(self.clips)

    def caption(self, index: int) -> str:
        """The caption of item `index`."""
        return self.clips.describe(index)["label"] or ""

    def captions(self) -> list[str]:
        """The captions of all items."""
        return [self.caption(index) for index in range(len(self))]

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        embeddings, mask = self.cache.get(self.caption(key[0] if isinstance(key, tuple) else key))
        return {"video": self.clips[key], "text_embeddings": embeddings, "text_attn_mask": mask}

    def describe(self, index: int) -> dict[str, Any]:
        """Where item `index` comes from."""
        return self.clips.describe(index)

    def fingerprint(self) -> str:
        """Changes with the clips."""
        return self.clips.fingerprint()


def caption_embedder(model: Any) -> Embed:
    """A function that embeds one caption with the model's T5; a missing T5 is an error that says what to do."""

    def embed(caption: str) -> tuple[Tensor, Tensor]:
        try:
            return model.encode_text(caption)
        except VVAEError as error:
            raise VVAEError(f"captions without stored embeddings need the text encoder: {error}") from error

    return embed
