"""The video transformer: an autoregressive model of clips of codes, slice by slice.

Rakhimov et al. 2020 (arXiv 2006.10704) after Weissenborn et al. 2020 (arXiv 1906.02634). Names of modules and
parameters are those of the published checkpoints.

Axes: B clips, C codebooks, V codes per codebook, (T, H, W) clip of codes, (t, h, w) slice, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvt.channel_head import ChannelHead
from lvt.initialization import initialize_convolutions
from lvt.model_config import transformer_config
from lvt.original_buffers import drop_recomputable
from lvt.slice_decoder import SliceDecoder
from lvt.slice_encoder import SliceEncoder
from lvt.subscale import put_slice, take_contexts, take_slices

IGNORED = -100  # target of positions that do not count


class VideoTransformer(nn.Module):
    """`model_config` is the VT node of a configuration, or a configuration that holds one.

    `load_state_dict` takes the published keys; the index tables in those files are left out, because they follow from
    the configuration. gradient_checkpointing recomputes the layers in the backward pass in place of storing them.
    Raises UserError for a configuration that does not fit together.
    """

    def __init__(self, model_config: Mapping[str, Any], gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.config = transformer_config(model_config)
        self.encoder = SliceEncoder(self.config, gradient_checkpointing)
        self.decoder = SliceDecoder(self.config, gradient_checkpointing)
        self.ch_predictor = ChannelHead(self.config)
        initialize_convolutions(self)
        self.register_load_state_dict_pre_hook(forget_recomputable)

    def forward(
        self, context: Tensor, slice_codes: Tensor, slice_index: Tensor, class_index: Tensor | None = None
    ) -> Tensor:
        """Context (B, C, T', H', W'), codes (B, C, t, h, w), slice_index (B,) -> logits (B, C, V, t, h, w)."""
        encoded = self.encoder(context, slice_index, class_index)
        features = self.decoder(slice_codes, encoded)  # (B, t, h, w, D)
        logits = self.ch_predictor(features, slice_codes.movedim(1, -1), self.decoder.ch_embedder)
        return torch.stack(logits, 1).movedim(-1, 2)

    def slice_inputs(self, codes: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Context and codes of slice index[b] of each clip (B, C, T, H, W), as `forward` takes them."""
        context = take_contexts(codes, self.config.stride, self.config.kernel, index, self.config.pad_value)
        return context, take_slices(codes, self.config.stride, index)

    @torch.no_grad()
    def clip_logits(self, codes: Tensor, class_idx: Tensor | None = None) -> Tensor:
        """Logits of every code of the clips given all that are generated before it.

        codes int64 (B, C, T, H, W), class_idx int64 (B,) -> (B, C, V, T, H, W).
        """
        batch, channels, *clip = codes.shape
        logits = codes.new_zeros(batch, channels * self.config.nv, *clip, dtype=self.encoder.conv.weight.dtype)
        for number in range(self.config.n_slices):
            index = codes.new_full((batch,), number)
            context, slice_codes = self.slice_inputs(codes, index)
            put_slice(logits, self.config.stride, number, self(context, slice_codes, index, class_idx).flatten(1, 2))
        return logits.unflatten(1, (channels, self.config.nv))


def cross_entropy(logits: Tensor, codes: Tensor, ignore: Tensor) -> Tensor:
    """Mean over codebooks and over all positions that are not ignored, in nats.

    logits (B, C, V, ...), codes (B, C, ...), ignore bool (B, 1, ...): true where nothing is predicted.
    """
    target = torch.where(ignore, IGNORED, codes)
    return F.cross_entropy(logits.movedim(2, 1).float(), target, ignore_index=IGNORED)


def forget_recomputable(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Drop the published index tables from a state dict that is being loaded."""
    own = {key: value for key, value in state.items() if key.startswith(prefix)}
    for key in own.keys() - drop_recomputable(own).keys():
        del state[key]
