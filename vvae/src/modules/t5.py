"""Caption embeddings with the encoder of google/flan-t5-large. transformers is imported only when one is made.

Captions are normalised as in the training of the text-guided models (`clean_caption`, for web-image captions of their
time).
"""

from __future__ import annotations

import html
import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ..errors import VVAEError
from ..files import replaced
from .attention_temporal_videoae import TEXT_WIDTH

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
        transformers = _transformers()
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


def _transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise VVAEError("captions need the transformers package: pip install transformers sentencepiece") from error
    return transformers


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
