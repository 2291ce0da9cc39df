"""What the video VAE is built of: first weights, positions, the way from pixels to tokens and back, and the pyramid.

Encoder, decoder and generator are each one `RecurrentPyramid`: levels of recurrent cells, each at half the resolution
of the one below, under one transformer block. A cell is an LSTM whose memory is read by such a block.

Every path from pixels to latents and back starts as a near-isometry. A product of independent random matrices passes a
few directions and crushes the rest, so that a chain of layers learns the few first; a product of orthogonal ones treats
all alike (Saxe et al. 2014, arXiv 1312.6120).

Axes: B clips, H W pixels; h w tokens of a level, dim their width. Maps are (B, h, w, dim).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.attention import attention
from video_vae.config import VideoVAEConfig
from videodata.errors import UserError

Maps = list[Tensor]  # one map (B, h_l, w_l, dim_l) per level, level 1 (the finest) first

RESIDUAL_GAIN = 0.2  # of layers that end a residual branch: blocks start close to the identity
STEM_GAIN = 3.0  # pixels in [-1, 1] have small variance; the embedding should count beside the convolutions
HEAD_GAIN = 0.5  # the first frames are grey rather than noise
# Bias of the input gate: exp(-gelu(1)) = 0.43, so that at the start the frames of a clip weigh about alike in the final
# state. At 0 each frame would halve the share of all frames before it.
FIRST_ADMISSION = 1.0
NARROWEST = 16  # channels at full resolution, where they are most expensive
HIDDEN = 2  # width of the hidden layer, in widths of the block


@torch.no_grad()
def orthogonal_(weight: Tensor, gain: float = 1.0) -> None:
    """Fill a weight (out, in), or a part of one, with an orthogonal matrix; variance grows by gain squared."""
    fresh = torch.empty(weight.shape)
    nn.init.orthogonal_(fresh, gain * max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5)
    weight.copy_(fresh)


def orthogonal_linear(dim_in: int, dim_out: int, gain: float = 1.0, bias: bool = True) -> nn.Linear:
    """A linear layer whose output has the variance of its input, times gain squared."""
    layer = nn.Linear(dim_in, dim_out, bias=bias)
    orthogonal_(layer.weight, gain)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def sinusoids(position: Tensor, dim: int, longest: float) -> Tensor:
    """Sines and cosines of `position` (N,) with wavelengths from 2 pi to 2 pi `longest`: (N, dim), dim even."""
    exponents = torch.linspace(0, 1, dim // 2, device=position.device)
    angles = position[:, None] * torch.exp(-math.log(longest) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def grid_embedding(height: int, width: int, dim: int, device: torch.device | str = "cpu") -> Tensor:
    """2-D sinusoidal position of each token: (1, h, w, dim), half of the channels for the row, half for the column."""
    half = dim // 2
    rows = sinusoids(torch.arange(height, device=device, dtype=torch.float32), half, longest=100.0)
    columns = sinusoids(torch.arange(width, device=device, dtype=torch.float32), half, longest=100.0)
    rows = rows[:, None].expand(height, width, half)
    columns = columns[None].expand(height, width, half)
    return torch.cat([rows, columns], dim=2)[None]


class TimeModulation(nn.Module):
    """Frame t of T scales and shifts the channels of a map (FiLM, Perez et al. 2018, arXiv 1709.07871).

    The scales differ from frame to frame from the start, so that the frames of a clip are kept apart in one recurrent
    state: what is written under one scale is read best under the same. Any T can follow training on another.
    """

    FEATURES = 32  # sinusoids of t, and as many of t / T

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale_and_shift = nn.Linear(2 * self.FEATURES, 2 * dim)
        nn.init.normal_(self.scale_and_shift.weight, std=self.FEATURES**-0.5)
        nn.init.zeros_(self.scale_and_shift.bias)

    def forward(self, x: Tensor, t: int, frames: int) -> Tensor:
        """Map (B, h, w, dim) -> the same shape."""
        times = torch.tensor([float(t), 100.0 * t / frames], device=x.device)
        features = sinusoids(times, self.FEATURES, longest=100.0).flatten()
        scale, shift = self.scale_and_shift(features).chunk(2)
        return x * (1 + scale) + shift


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with groups of about 16 channels, per sample: nothing depends on the rest of the batch."""
    groups = max(1, channels // 16)
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels)


class FrameStem(nn.Module):
    """Frame (B, 3, H, W) in [-1, 1] -> map (B, H / stride, W / stride, dim).

    A linear embedding of each patch beside the convolutions keeps absolute colour, which their norms take away.
    """

    def __init__(self, stride: int, dim: int) -> None:
        super().__init__()
        halvings = stride.bit_length() - 1
        widths = [min(dim, NARROWEST * 2**i) for i in range(halvings + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1)]
        for narrow, wide in zip(widths, widths[1:], strict=False):
            layers += [group_norm(narrow), nn.GELU(), nn.Conv2d(narrow, wide, 3, stride=2, padding=1)]
        layers += [group_norm(widths[-1]), nn.GELU(), nn.Conv2d(widths[-1], dim, 3, padding=1)]
        self.layers = nn.Sequential(*layers)
        self.patches = nn.Conv2d(3, dim, stride, stride=stride)
        orthogonal_(self.patches.weight.flatten(1), STEM_GAIN)
        self.norm = nn.LayerNorm(dim)

    def forward(self, frame: Tensor) -> Tensor:
        frame = frame.contiguous(memory_format=torch.channels_last)
        x = self.layers(frame) + self.patches(frame)
        return self.norm(x.permute(0, 2, 3, 1))


class FrameHead(nn.Module):
    """Canvas (B, h, w, in_dim) -> frame (B, 3, h * stride, w * stride) in [-1, 1].

    Sub-pixel output (Shi et al. 2016, arXiv 1609.05158) at the frame's own resolution, then residual convolutions
    beside a linear map from each token to its patch, which has learnt the coarse picture within the first steps.
    """

    def __init__(self, in_dim: int, stride: int, dim: int) -> None:
        super().__init__()
        self.stride = stride
        self.norm = nn.LayerNorm(in_dim)
        self.expand = nn.Linear(in_dim, dim * stride**2)
        self.patches = orthogonal_linear(in_dim, 3 * stride**2, HEAD_GAIN)
        self.refine = nn.Sequential(
            group_norm(dim), nn.SiLU(), nn.Conv2d(dim, dim, 3, padding=1),
            group_norm(dim), nn.SiLU(), nn.Conv2d(dim, dim, 3, padding=1),
        )  # fmt: skip
        self.out = nn.Sequential(group_norm(dim), nn.SiLU(), nn.Conv2d(dim, 3, 3, padding=1))

    def forward(self, canvas: Tensor, beside: Tensor | None = None) -> Tensor:
        """`beside` (B, 3, H, W): what another path says, before it is squashed to [-1, 1]."""
        canvas = self.norm(canvas)
        x = self.to_pixels(self.expand(canvas))
        frame = self.to_pixels(self.patches(canvas)) + self.out(x + self.refine(x))
        return torch.tanh(frame if beside is None else frame + beside)

    def to_pixels(self, x: Tensor) -> Tensor:
        """(B, h, w, dim * stride^2) -> (B, dim, h * stride, w * stride)."""
        return F.pixel_shuffle(x.permute(0, 3, 1, 2), self.stride).contiguous(memory_format=torch.channels_last)


class Resample(nn.Module):
    """A convolution, LayerNorm over channels, GELU: map (B, h, w, dim_in) -> (B, h', w', dim_out)."""

    def __init__(self, convolution: nn.Module, dim: int) -> None:
        super().__init__()
        self.convolution = convolution
        self.activation = nn.Sequential(nn.LayerNorm(dim), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolution(x.permute(0, 3, 1, 2))  # the permuted view is channels_last: nothing is copied
        return self.activation(x.permute(0, 2, 3, 1))


def down(dim_in: int, dim_out: int) -> Resample:
    """Half the resolution, one level up the pyramid: one token from four."""
    return Resample(nn.Conv2d(dim_in, dim_out, 2, stride=2, bias=False), dim_out)


def up(dim_in: int, dim_out: int) -> Resample:
    """Twice the resolution, one level down: four tokens from one, at a quarter of a transposed convolution's cost."""
    return Resample(nn.Sequential(nn.Conv2d(dim_in, 4 * dim_out, 1, bias=False), nn.PixelShuffle(2)), dim_out)


class ContextBlock(nn.Module):
    """Pre-norm transformer block on a map (B, h, w, dim) with context maps (B, h, w, *) of the same grid.

    The contexts, brought to one map c, enter twice: added to the token, and as a gate 1 + W c on queries, keys and
    values. The additive path is what lets local detail through; the gate alone would average it over all tokens. A
    depthwise convolution tells each token of its neighbours. Queries and keys are normalised per head (Henry et al.
    2020, arXiv 2010.04245). The first `strong` contexts count fully from the start, the others are learnt.
    """

    def __init__(
        self, dim: int, heads: int, context_dims: Sequence[int] = (), dropout: float = 0.0, strong: int = 0
    ) -> None:
        super().__init__()
        if dim % heads:
            raise UserError(f"{heads} attention heads do not divide the width {dim}")
        self.heads = heads
        self.context = nn.Linear(sum(context_dims), dim) if context_dims else None
        self.gate = nn.Linear(dim, 3 * dim) if context_dims else None
        self.local = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.query_norm = nn.LayerNorm(dim // heads, bias=False)
        self.key_norm = nn.LayerNorm(dim // heads, bias=False)  # a bias would drop out in the softmax
        self.attention_out = orthogonal_linear(dim, dim, RESIDUAL_GAIN)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim),
            orthogonal_linear(dim, HIDDEN * dim),
            nn.GELU(),
            orthogonal_linear(HIDDEN * dim, dim, RESIDUAL_GAIN),
            nn.Dropout(dropout),
        )
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.local.weight, std=RESIDUAL_GAIN / 3)
        if self.context is not None:
            for index, part in enumerate(self.context.weight.split(list(context_dims), dim=1)):
                orthogonal_(part, 1.0 if index < strong else RESIDUAL_GAIN)
            nn.init.zeros_(self.context.bias)
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)

    def forward(self, x: Tensor, contexts: Sequence[Tensor] = ()) -> Tensor:
        """Map x (B, h, w, dim) -> (B, h, w, dim)."""
        gate = None
        if self.context is not None:
            shift = self.context(torch.cat(contexts, dim=-1))
            x, gate = x + shift, self.gate(shift)
        x = x + self.local(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.dropout(self.attend(x, gate))
        return x + self.mlp(x)

    def attend(self, x: Tensor, gate: Tensor | None) -> Tensor:
        qkv = self.qkv(self.attention_norm(x))
        if gate is not None:
            qkv = qkv * (1 + gate)
        qkv = qkv.flatten(1, 2).unflatten(-1, (3, self.heads, -1))  # (B, N, 3, heads, dim / heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, dim / heads)
        attended = attention(self.query_norm(query), self.key_norm(key), value)
        return self.attention_out(attended.transpose(1, 2).reshape(x.shape))


class TransformerLSTMCell(nn.Module):
    """One recurrent level: input map z (B, h, w, input_dim), state (B, h, w, dim) -> new state.

    i, f    = exp(-gelu(.)), in (0, 1.19]            gates and candidate are linear in [state, z]
    memory  = LN(f * state + i * candidate)
    reading = Block(memory, contexts)
    state   = LN(o * memory + (1 - o) * reading)     o = sigmoid(W [memory, reading])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        input_dim: int,
        context_dims: Sequence[int] = (),
        dropout: float = 0.0,
        strong: int = 0,
    ) -> None:
        super().__init__()
        self.gates = nn.Linear(dim + input_dim, 3 * dim)
        # the candidate starts as the input alone, so that the memory is a plain sum of what was read
        nn.init.zeros_(self.gates.weight[2 * dim :, :dim])
        orthogonal_(self.gates.weight[2 * dim :, dim:])
        nn.init.constant_(self.gates.bias[:dim], FIRST_ADMISSION)
        self.memory_norm = nn.LayerNorm(dim)
        self.block = ContextBlock(dim, heads, context_dims, dropout, strong)
        self.output_gate = nn.Linear(2 * dim, dim)
        self.value_norm = nn.LayerNorm(dim)

    def forward(self, z: Tensor, state: Tensor, contexts: Sequence[Tensor] = ()) -> Tensor:
        admit, forget, candidate = self.gates(torch.cat([state, z], dim=-1)).chunk(3, dim=-1)
        memory = self.memory_norm(torch.exp(-F.gelu(forget)) * state + torch.exp(-F.gelu(admit)) * candidate)
        reading = self.block(memory, contexts)
        keep = torch.sigmoid(self.output_gate(torch.cat([memory, reading], dim=-1)))
        return self.value_norm(reading + keep * (memory - reading))


class RecurrentPyramid(nn.Module):
    """Levels of recurrent cells under one transformer block; `step` takes the clip one frame further.

    `extras`: how many context maps of its own width each level is given from outside. `skip`: the input also reaches
    the higher levels directly.
    """

    def __init__(self, config: VideoVAEConfig, in_dim: int, heads: int, extras: int = 0, skip: bool = False) -> None:
        super().__init__()
        dims = [level.dim for level in config.levels]
        count, strong = len(dims), min(extras, 1)  # the first extra is what the pyramid works on
        self.block = ContextBlock(in_dim, heads, [dims[0]] * (extras + count), config.dropout, strong)
        self.cells = nn.ModuleList(
            TransformerLSTMCell(
                level.dim,
                level.heads,
                input_dim=in_dim if index == 0 else level.dim,
                context_dims=[level.dim] * (extras + count - 1 - index),
                dropout=config.dropout,
                strong=strong,
            )
            for index, level in enumerate(config.levels)
        )
        self.downs = nn.ModuleList(down(fine, coarse) for fine, coarse in zip(dims, dims[1:], strict=False))
        # ups[j - 1] leads from level j (counted from 0) down to level 0, step by step
        self.ups = nn.ModuleList(
            nn.ModuleList(up(dims[level], dims[level - 1]) for level in range(top, 0, -1)) for top in range(1, count)
        )
        inputs = [in_dim, *dims[1:]]
        self.skips = nn.ModuleList(down(a, b) for a, b in zip(inputs, dims[1:], strict=False) if skip)

    def step(self, x: Tensor, states: Maps, extras: Sequence[Maps] = ()) -> tuple[Tensor, Maps]:
        """Input x (B, h, w, in_dim) and states -> (output of the block, new states)."""
        from_above = self.contexts(states)
        given = [[maps[level] for maps in extras] for level in range(len(states))]
        z = self.block(x, [*given[0], states[0], *from_above[0]])
        skips = self.skip_inputs(x)
        new_states: Maps = []
        for level, cell in enumerate(self.cells):
            below = z if level == 0 else self.downs[level - 1](new_states[-1])
            new_states.append(cell(below + skips[level], states[level], [*given[level], *from_above[level]]))
        return z, new_states

    def contexts(self, states: Maps) -> list[Maps]:
        """For each level, the states of all coarser levels brought to its grid and width."""
        at_level: list[Maps] = [[] for _ in states]
        for top, chain in enumerate(self.ups, start=1):
            x = states[top]
            for level, step_up in zip(range(top - 1, -1, -1), chain, strict=True):
                x = step_up(x)
                at_level[level].append(x)
        return at_level

    def skip_inputs(self, x: Tensor) -> list[Tensor | float]:
        """What the input x adds to the input of each level; nothing at level 1, which has it through the block."""
        inputs: list[Tensor | float] = [0.0] * len(self.cells)
        for level, step_down in enumerate(self.skips, start=1):
            x = inputs[level] = step_down(x)
        return inputs
