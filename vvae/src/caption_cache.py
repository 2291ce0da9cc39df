"""Caption embeddings kept on disk, one file per caption, and clips that bring theirs along."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from .errors import VVAEError
from .modules.t5 import load_text, save_text

Embed = Callable[[str], tuple[Tensor, Tensor]]


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
