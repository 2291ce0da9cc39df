"""Start values for training without published weights: the untrained model already passes colours on.

The three colours and their negatives have channels of their own all the way down and up, where they are averaged over
cells and repeated; the other channels start as orthogonal maps of single positions (Saxe et al. 2014, arXiv 1312.6120),
residual branches at zero. Where channels stand beside their negatives, SiLU(x) - SiLU(-x) = x makes the activation
linear (Balduzzi et al. 2017, arXiv 1702.08591), and a norm of one position leaves their mean alone. From other start
values a small model first learns where things are and draws them in grey, and it takes minutes to find their colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tokenizer3d.blocks import (
    CausalConv,
    FrameAttention,
    LinearTimeUp,
    SpaceDown,
    SpaceUp,
    SpatialBlock,
    TimeBlock,
    TimeDown,
    TimeUp,
)
from videodata.errors import UserError

if TYPE_CHECKING:
    from tokenizer3d.model import Tokenizer3D

Weight = tuple[int, int, float]  # output channel, input channel, value

LOG_VARIANCE = -6.0  # of the posterior: with 0 its noise would drown the latents of an untrained model
CONTRAST = 3.0  # by which the last norm divides a position whose values are small beside it
CELL = ((0, 0), (0, 1), (1, 0), (1, 1))  # taps of a kernel of stride 2 that tile the frame
COLOURS = 3
SIGNS: list[Weight] = [(2 * c + side, c, sign) for c in range(COLOURS) for side, sign in enumerate((1.0, -1.0))]
PAIRS: list[Weight] = [(c, channel, sign) for channel, c, sign in SIGNS]  # from channels back to colours
SAME: list[Weight] = [(channel, channel, 1.0) for channel in range(2 * COLOURS)]


@torch.no_grad()
def start_isometric(tokenizer: Tokenizer3D) -> None:
    """Set the start values of a new model. Raises UserError for one with too few channels."""
    config = tokenizer.config
    if min(map(config.width, range(len(config.ch_mult)))) < len(SIGNS) + 2 or config.z_channels < COLOURS:
        raise UserError(
            f"an isometric start needs at least {len(SIGNS) + 2} channels (ch, ch_mult) and {COLOURS} z_channels"
        )
    encoder, decoder, count = tokenizer.encoder, tokenizer.decoder, config.patch_size**2
    for network in (encoder, decoder):
        for module in network.modules():
            start_layer(module)
    pixel = [(channel, part * COLOURS + c, sign / count) for channel, c, sign in SIGNS for part in range(count)]
    pixels = [(part * COLOURS + c, channel, sign) for c, channel, sign in PAIRS for part in range(count)]
    for layer, kept, ins in (
        (encoder.conv_in, pixel, 0),
        (encoder.conv_out, PAIRS, 0),
        (decoder.conv_in, SIGNS, COLOURS),
        (decoder.conv_out, pixels, None),
    ):
        in_time(plain(layer), layer, kept, ins)
    last = plain(encoder.conv_out)
    if config.regularizer == "kl":
        nn.init.zeros_(last.weight[config.z_channels :])
        nn.init.constant_(last.bias[config.z_channels :], LOG_VARIANCE)
    keep_contrast(plain(encoder.mid.block_2.conv2), encoder.norm_out.norm, last)
    block = decoder.up_temporal[0].block[-1]
    keep_contrast(plain(block.conv2), decoder.norm_out.norm, plain(decoder.conv_out))


def plain(layer: nn.Module) -> nn.Module:
    """The convolution of a layer, causal or not."""
    return layer.conv if isinstance(layer, CausalConv) else layer


def start_layer(module: nn.Module) -> None:
    """One layer inside of a network."""
    same = len(SAME)
    if isinstance(module, SpaceDown):
        orthogonal(module.conv, CELL, SAME, same)
    elif isinstance(module, SpaceUp):
        orthogonal(module.conv, ((1, 1),), SAME, same)
    elif isinstance(module, TimeDown):
        first = int(module.causal)  # of the two frames that become one, among the three of the kernel
        orthogonal(plain(module.conv), [(frame, 1, 1) for frame in (first, first + 1)], SAME, same)
    elif isinstance(module, TimeUp | LinearTimeUp):
        in_time(plain(module.conv), module.conv, SAME, same)
    elif isinstance(module, SpatialBlock):
        nn.init.zeros_(module.conv2.weight)
        nn.init.zeros_(module.conv2.bias)
        if module.nin_shortcut is not None:
            orthogonal(module.nin_shortcut, ((0, 0),), SAME, same)
    elif isinstance(module, TimeBlock):
        nn.init.zeros_(plain(module.conv2).weight)
        nn.init.zeros_(plain(module.conv2).bias)
    elif isinstance(module, FrameAttention):
        nn.init.zeros_(plain(module.proj_out).weight)
        nn.init.zeros_(plain(module.proj_out).bias)


def in_time(conv: nn.Module, layer: nn.Module, kept: Sequence[Weight], inputs: int | None) -> None:
    """A 3x3x3 kernel that looks at the present frame alone."""
    orthogonal(conv, ((2 if isinstance(layer, CausalConv) else 1, 1, 1),), kept, inputs)


def orthogonal(conv: nn.Module, taps: Sequence[tuple[int, ...]], kept: Sequence[Weight], inputs: int | None) -> None:
    """An orthogonal map from the inputs at some taps to the outputs; zero at the other taps.

    kept: weights of the outputs that are left out of the map, shared among the taps. inputs: how many of the first
    input channels are left out of it, too; None: there is no map.
    """
    weight: Tensor = conv.weight
    nn.init.zeros_(weight)
    nn.init.zeros_(conv.bias)
    outputs = 1 + max(output for output, _, _ in kept)
    if inputs is not None and weight.shape[0] > outputs and weight.shape[1] > inputs:
        rest = weight.new_empty(weight.shape[0] - outputs, (weight.shape[1] - inputs) * len(taps))
        nn.init.orthogonal_(rest)
        for tap, part in zip(taps, rest.chunk(len(taps), dim=1), strict=True):
            weight[(slice(outputs, None), slice(inputs, None), *tap)] = part
    for output, source, value in kept:
        for tap in taps:
            weight[(output, source, *tap)] = value / len(taps)


def keep_contrast(before: nn.Module, norm: nn.LayerNorm, after: nn.Module) -> None:
    """Give a norm two large constants, so that it divides all positions by about the same number.

    `before` adds them, the layer `after` undoes the division. The norm hides the constants themselves: through that
    layer, every step would shift all pixels at once.
    """
    constant = len(before.bias) ** 0.5 * CONTRAST / 2**0.5
    before.bias[-2:] = torch.tensor([constant, -constant])
    after.weight *= CONTRAST
    norm.weight[-2:] = 0.0
