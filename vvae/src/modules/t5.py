"""Captions of the text-guided models: embeddings that are passed in, kept on disk, or made by T5.

The encoder is that of google/flan-t5-large; transformers is imported only when one is made. Captions are normalised
as in the training of the text-guided models (`clean_caption`, for web-image captions of their time).
"""

from __future__ import annotations

import hashlib
import html
import re
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import VVAEError
from ..files import replaced
from ..models.settings import ModelSettings
from .attention_temporal_videoae import TEXT_WIDTH, Text, mask_bias

NAME = "google/flan-t5-large"
URL = f"https://huggingface.co/{NAME}"


class T5Embedder:
    """Captions -> (embeddings (B, L, 1024), mask (B, L)), padded or cut to L tokens; frozen, bfloat16 inside.

    name: a model name or a folder. Raises VVAEError when transformers or the model is not there, or is no T5-large.
    """

    def __init__(
        self,
        max_length: int = 120,
        name: str = NAME,
        device: torch.device | str = "cpu",
        local_files_only: bool = False,
    ) -> None:
        try:
            import transformers
        except ImportError as error:
            raise VVAEError("captions need the transformers package: pip install transformers sentencepiece") from error
        self.max_length = max_length
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(name, local_files_only=local_files_only)
            model = transformers.T5EncoderModel.from_pretrained(
                name, torch_dtype=torch.bfloat16, local_files_only=local_files_only
            )
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise VVAEError(
                f"the text encoder {name} cannot be loaded: {reason}. Its files are at {URL}; put them into a "
                "folder and name that as text encoder"
            ) from error
        if model.config.d_model != TEXT_WIDTH:
            raise VVAEError(f"the text encoder {name} gives {model.config.d_model} numbers per token, not {TEXT_WIDTH}")
        self.model = model.eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def __call__(
        self, captions: Sequence[str], clean: bool = True, device: torch.device | str | None = None
    ) -> tuple[Tensor, Tensor]:
        if device is not None:
            self.model.to(device)
        # Twice, because that is what the published models were trained with.
        texts = [clean_caption(clean_caption(text)) if clean else text for text in captions]
        tokens = self.tokenizer(
            texts,
            max_length=self.max_length,
            padding="max_length",
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self.model.device)
        states = self.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return states.float(), tokens.attention_mask.float()


def save_text(path: str | Path, embeddings: Tensor, mask: Tensor) -> None:
    """Keep the result of `encode_text` in a .safetensors file."""
    from safetensors.torch import save

    with replaced(path) as temporary:
        temporary.write_bytes(
            save({"text_embeddings": embeddings.contiguous().cpu(), "text_attn_mask": mask.contiguous().cpu()})
        )


def load_text(path: str | Path) -> tuple[Tensor, Tensor]:
    """Embeddings (B, L, 1024) and mask (B, L) from a file of `save_text`. Raises VVAEError for any other file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(str(path))
        return tensors["text_embeddings"], tensors["text_attn_mask"]
    except FileNotFoundError as error:
        raise VVAEError(f"{path}: no such file; encode_text and save_text make one") from error
    except (SafetensorError, KeyError) as error:
        raise VVAEError(f"{path}: not a file of text embeddings (save_text writes them)") from error


DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
    "\ufe31\ufe32\ufe58\ufe63\uff0d"
)
PUNCTUATION = r"[#®•©™&@·º½¾¿¡§~\(\)\[\]\{\}\|\\/\*]+"

DOMAIN = r"[a-z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"

# Applied in this order: (pattern, replacement).
FIRST = (
    (r"<person>", "person"),
    (rf"\b(?:https?:\/{{1,3}}[^\s]+|{DOMAIN})", ""),
    (rf"\b(?:www:\/{{0,3}}[^\s]+|{DOMAIN})", ""),
)
SECOND = (
    (r"@[\w\d]+\b", ""),
    (r"[\u31c0-\u31ef\u31f0-\u31ff\u3200-\u32ff\u3300-\u33ff\u3400-\u4dbf\u4dc0-\u4dff\u4e00-\u9fff]+", ""),
    (f"[{DASHES}]+", "-"),
    (r"[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    (r"[\u2018\u2019]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (r"[\S]+\.(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)", ""),
    (r"[\"']{2,}", '"'),
    (r"[.]{2,}", " "),
    (PUNCTUATION, " "),
    (r"\s+\.\s+", " "),
)
THIRD = (
    (r"\b[a-z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-z]+\d+[a-z]+\b", ""),
    (r"\b\d+[a-z]+\d+\b", ""),
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (r"\b(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)(\simage[s]?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-z]+\d+[a-z]+\d+[a-z\d]*\b", " "),
    (r"\b\d+\.?\d*[x\u0445\u00d7]\d+\.?\d*\b", ""),
    (r"\b\s+:\s+", ": "),
    (r"(\D[,\./])\b", r"\1 "),
    (r"\s+", " "),
)
LAST = (
    (r"^[\"'](.+)[\"']$", r"\1"),
    (r"^[\s'_,\-:;]+", ""),
    (r"[\s'_,\-:\-+]+$", ""),
    (r"^\.\S+$", ""),
)


def clean_caption(text: str) -> str:
    """One pass of the normalisation; needs ftfy and beautifulsoup4. Raises VVAEError when they are missing."""
    try:
        import ftfy
        from bs4 import BeautifulSoup
    except ImportError as error:
        raise VVAEError("cleaning captions needs beautifulsoup4 and ftfy: install them, or pass clean=False") from error
    text = urllib.parse.unquote_plus(str(text)).strip().lower()
    text = BeautifulSoup(_replace(text, FIRST), features="html.parser").text
    text = _replace(text, SECOND)
    if len(re.findall(r"[-_]", text)) > 3:
        text = re.sub(r"[-_]", " ", text)
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return _replace(_replace(text, THIRD).strip(), LAST).strip()


def _replace(text: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


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
        return self.clips.describe(index)["label"] or ""

    def captions(self) -> list[str]:
        return [self.caption(index) for index in range(len(self))]

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        embeddings, mask = self.cache.get(self.caption(key[0] if isinstance(key, tuple) else key))
        return {"video": self.clips[key], "text_embeddings": embeddings, "text_attn_mask": mask}

    def describe(self, index: int) -> dict[str, Any]:
        return self.clips.describe(index)

    def fingerprint(self) -> str:
        return self.clips.fingerprint()

    def provenance(self) -> dict[str, Any]:
        return self.clips.provenance()

    def blocks(self) -> Any:
        """Where tars begin, of clips that lie in them."""
        return self.clips.blocks() if hasattr(self.clips, "blocks") else None


def caption_embedder(model: Any) -> Embed:
    """A function that embeds one caption with the model's T5; a missing T5 is an error that says what to do."""

    def embed(caption: str) -> tuple[Tensor, Tensor]:
        try:
            return model.encode_text(caption)
        except VVAEError as error:
            raise VVAEError(f"captions without stored embeddings need the text encoder: {error}") from error

    return embed
