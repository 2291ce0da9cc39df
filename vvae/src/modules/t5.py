"""Caption embeddings with the encoder of google/flan-t5-large. transformers is imported only when one is made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ..errors import VVAEError
from .attention_temporal_videoae import TEXT_WIDTH
from .caption_cleaning import clean_caption

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

    from ..files import replaced

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
