"""Start values for training without published weights: the untrained model already passes colours on.

In space, the three colours and their negatives have channels of their own all the way down and up, where they are
averaged over cells and repeated; the other channels start as orthogonal maps of single pixels (Saxe et al. 2014, arXiv
1312.6120), residual branches at zero. In time, the latent starts as the mean of its 4 frames, which the decoder
repeats; where the temporal stage has fewer channels than the latent, the rest are half the differences of the first two
frames' mean and the last two's (the Haar transform), with which the decoder tells them apart. Where channels stand
beside their negatives, SiLU(x) - SiLU(-x) = x makes the activation linear (Balduzzi et al. 2017, arXiv 1702.08591) and
a group norm leaves their mean alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import VVAEError
from ..modules.ae_modules import AttnBlock3D, Downsample, ResnetBlock2plus1D, SpatialConv, Upsample
from .autoencoder2plus1d_1dcnn import AutoencoderKL2plus1D_1dcnn
from .autoencoder_temporal import DecoderTemporal1DCNN, EncoderTemporal1DCNN, ResBlock

Tap = tuple[int, int, int]  # (t, y, x) in a kernel

LOG_VARIANCE = -6.0  # of both posteriors: with 0 their noise would drown the latents of an untrained model
CELL = ((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1))  # taps of a stride-2 kernel that tile the frame
CENTRE, NEXT = (1, 1, 1), (2, 1, 1)  # taps of a 3x3x3 kernel: this frame and the one after
CONTRAST = 3.0  # by which a norm divides a clip whose values are small beside it
COLOURS = range(3)
SIGNS = [(2 * c + side, c, sign) for c in COLOURS for side, sign in enumerate((1.0, -1.0))]  # (channel, colour, sign)
PAIRS = [(c, channel, sign) for channel, c, sign in SIGNS]  # from channels back to colours
SAME = [(channel, channel, 1.0) for channel in range(6)]


@torch.no_grad()
def start_isometric(model: AutoencoderKL2plus1D_1dcnn) -> None:
    """Set the start values of a new model. Raises VVAEError for a model of less than six channels, and for a temporal
    stage narrower than half the latent."""
    if model.encoder.conv_in.out_channels < len(SIGNS):
        raise VVAEError(f"an isometric start needs ddconfig.ch >= {len(SIGNS)}")
    for stage in (model.encoder, model.decoder):
        _start_in_space(stage)
    model.decoder.conv_out.weight[:, len(SIGNS) :] = 0.0
    channels = model.encoder.z_channels
    hidden = model.encoder_temporal.conv_in.conv.out_channels
    if 2 * hidden < channels:
        raise VVAEError(f"an isometric start needs ppconfig.hidden_channel >= {-(-channels // 2)}, found {hidden}")
    if model.config.use_quant_conv:
        for layer in (model.quant_conv, model.post_quant_conv):
            _orthogonal(layer, [(0, 0, 0)], [(c, c, 1.0) for c in COLOURS])
    _quiet(model.quant_conv if model.config.use_quant_conv else model.encoder.conv_out)
    _start_encoder_in_time(model.encoder_temporal, channels, hidden)
    _start_decoder_in_time(model.decoder_temporal, channels, hidden)
    if model.config.norm_groups == 1:
        _keep_contrast(model)


def _keep_contrast(model: AutoencoderKL2plus1D_1dcnn) -> None:
    """Give the last norm of each stage two large constants, so that it divides all clips by about the same number.

    Only with one group: the constants of a group say nothing of the size of another. The layer behind undoes the
    division. The norm hides the constants themselves: through that layer, every step would shift all pixels at once.
    """
    encoder, decoder, temporal = model.encoder, model.decoder, model.encoder_temporal
    for block, norm, last in (
        (encoder.mid.block_2.conv2, encoder.norm_out, encoder.conv_out),
        (temporal.mid_blocks[-1].res.conv2.conv, temporal.final_block[0], temporal.final_block[-1].conv),
        (decoder.up[0].block[-1].conv2, decoder.norm_out, decoder.conv_out),
    ):
        constant = block.out_channels**0.5 * CONTRAST / 2**0.5
        block.bias[-2:] = torch.tensor([constant, -constant])
        last.weight *= CONTRAST
        norm.weight[-2:] = 0.0


def _start_in_space(stage: nn.Module) -> None:
    """The colours and the other channels, from the first layer to the last."""
    for module in stage.modules():
        if isinstance(module, SpatialConv):
            _orthogonal(module, [tuple(size // 2 for size in module.kernel_size)])
    _orthogonal(stage.conv_in, [(0, 1, 1)], SIGNS)
    _orthogonal(stage.conv_out, [(0, 1, 1)], PAIRS)
    for module in stage.modules():
        if isinstance(module, Downsample):
            _orthogonal(module.conv, CELL, SAME)
        elif isinstance(module, Upsample):
            _orthogonal(module.conv, [(0, 1, 1)], SAME)
        elif isinstance(module, ResnetBlock2plus1D):
            nn.init.zeros_(module.conv2.weight)
            if module.nin_shortcut is not None:
                _orthogonal(module.nin_shortcut, [(0, 0, 0)], SAME)
        elif isinstance(module, AttnBlock3D):
            nn.init.zeros_(module.proj_out.weight)


def _start_encoder_in_time(encoder: EncoderTemporal1DCNN, channels: int, hidden: int) -> None:
    """Means of two frames, then of four; half the differences of either take the channels that are left."""
    first, second = encoder.mid_blocks
    _connect(encoder.conv_in.conv, [(c, c, CENTRE, 1.0) for c in range(min(channels, hidden))])
    means = [(c, c, tap, 0.5) for c in range(hidden) for tap in (CENTRE, NEXT)]
    differences = [(hidden + c, c, tap, sign) for c in range(hidden) for tap, sign in ((CENTRE, 0.5), (NEXT, -0.5))]
    _connect(first.down.conv, means + differences)
    mirrored = [
        (2 * (c + kind * hidden) + side, c, tap, half * sign)
        for c in range(hidden)
        for kind, signs in enumerate(((1, 1), (1, -1)))  # the mean of two means, half their difference
        for side, half in enumerate((0.5, -0.5))
        for tap, sign in zip((CENTRE, NEXT), signs, strict=True)
    ]
    _connect(second.down.conv, mirrored)
    last = encoder.final_block[-1].conv
    _connect(last, [(c, 2 * c + side, CENTRE, sign) for c in range(channels) for side, sign in enumerate((1.0, -1.0))])
    _quiet(last)
    _close_branches(encoder)


def _start_decoder_in_time(decoder: DecoderTemporal1DCNN, channels: int, hidden: int) -> None:
    """Every latent frame four times, plus the difference for the first two and minus it for the last two."""
    first, second = decoder.mid_blocks
    _connect(decoder.conv_in.conv, [(c, c, CENTRE, 1.0) for c in range(channels)])
    for block in (first, second):
        _connect(block.up, [(c, c, tap, 1.0) for c in range(block.up.out_channels) for tap in (CENTRE, NEXT)])
    for c in range(hidden, channels):
        first.up.weight[(c, c - hidden, *CENTRE)] = 1.0  # (in, out): a transposed convolution
        first.up.weight[(c, c - hidden, *NEXT)] = -1.0
    _connect(decoder.conv_last.conv, [(c, c, CENTRE, 1.0) for c in range(min(channels, hidden))])
    _close_branches(decoder)


def _close_branches(stage: nn.Module) -> None:
    for module in stage.modules():
        if isinstance(module, ResBlock):
            nn.init.zeros_(module.conv2.conv.weight)


def _connect(layer: nn.Conv3d | nn.ConvTranspose3d, weights: list[tuple[int, int, Tap, float]]) -> None:
    """Zero but for the weights (first axis, second axis, tap, value)."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    for first, second, tap, value in weights:
        layer.weight[(first, second, *tap)] = value


def _orthogonal(layer: nn.Conv3d, taps: Sequence[Tap], kept: Sequence[tuple[int, int, float]] = ()) -> None:
    """An orthogonal map from the inputs at some taps to the outputs; zero at the other taps.

    kept: weights (output, input, value), the same at each tap, of outputs and inputs that are left out of it.
    """
    weight: Tensor = layer.weight
    outputs, inputs = (1 + max((entry[axis] for entry in kept), default=-1) for axis in (0, 1))
    rest = weight.new_empty(weight.shape[0] - outputs, (weight.shape[1] - inputs or weight.shape[1]) * len(taps))
    nn.init.zeros_(weight)
    nn.init.zeros_(layer.bias)
    if rest.shape[0]:
        nn.init.orthogonal_(rest)
        first = weight.shape[1] - rest.shape[1] // len(taps)
        for tap, part in zip(taps, rest.unflatten(1, (-1, len(taps))).unbind(dim=2), strict=True):
            weight[(slice(outputs, None), slice(first, None), *tap)] = part
    for output, source, value in kept:
        for tap in taps:
            weight[(output, source, *tap)] = value / len(taps)


def _quiet(layer: nn.Conv3d) -> None:
    """A posterior of small constant variance: the second half of the outputs of its layer."""
    half = layer.out_channels // 2
    nn.init.zeros_(layer.weight[half:])
    nn.init.constant_(layer.bias[half:], LOG_VARIANCE)
