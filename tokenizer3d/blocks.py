"""The layers of both networks: norms, convolutions that see the past alone, residual blocks, resampling.

Inside the networks clips are (B, T, H, W, C): norms and 1x1x1 convolutions act on the last axis, frames and pixels are
views of one tensor, and the convolutions take it as channels-last memory without a copy. Every layer that mixes frames
takes a `Memory`, which holds what it needs of the frames before; None stands for a whole clip at once. Key names are
those of the published files. Source: the public code of microsoft/VidTok (MIT licence), as a description.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer3d.config import Tokenizer3DConfig
from training.attention import attention

EPS = 1e-6  # of every norm; with PyTorch's 1e-5 the published weights give other frames
MIX = 2.0  # initial mix_factor of the resampling in time: 88 % pooling, 12 % convolution


@dataclass
class Memory:
    """What the layers of one network remember of a clip of which they have seen the beginning.

    tensors: the last frames of a layer's input by the layer's name; seen: how many frames a layer has had. rows: layers
    above the middle are evaluated in strips of so many rows. last: no frames follow, so that layers with look-ahead
    give all that they have.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    rows: int | None = None
    last: bool = False
    scope: str = ""  # of the part of the picture that is computed; each part remembers its own frames

    def scoped(self, scope: str, rows: int | None = None) -> Memory:
        """The memory of a part of the picture, inside this one."""
        return replace(self, scope=f"{self.scope}{scope}/", rows=rows)

    def front(self, name: str) -> Tensor | None:
        """The frames that a layer keeps; None before its first ones."""
        return self.tensors.get(self.scope + name)

    def keep(self, name: str, frames: Tensor) -> None:
        """Keep a copy, so that the tensor that the frames are a part of can go."""
        self.tensors[self.scope + name] = frames.clone()

    def count(self, name: str, frames: int) -> int:
        """Add to the frames that a layer has had; gives how many these were before."""
        before = self.seen.get(self.scope + name, 0)
        self.seen[self.scope + name] = before + frames
        return before


def in_strips(
    function: Callable[[Tensor, Memory | None], Tensor],
    x: Tensor,
    memory: Memory | None,
    before: int,
    after: int,
    up: int = 1,
    down: int = 1,
) -> Tensor:
    """function(x, memory), in strips of rows where the memory says so; exact, since no norm mixes positions.

    before, after: rows above and below that a strip of x (B, T, H, W, C) needs; up, down: how many rows of the result
    `down` rows of x make.
    """
    if memory is None or memory.rows is None or memory.rows >= x.shape[2]:
        return function(x, memory)
    height, out = x.shape[2], None
    rows = -(-memory.rows // down) * down
    for start in range(0, height, rows):
        end = min(start + rows, height)
        low, high = max(0, start - before), min(height, end + after)
        part = function(x[:, :, low:high], memory.scoped(str(start)))
        if out is None:
            out = part.new_empty(*part.shape[:2], height * up // down, *part.shape[3:])
        first, stop = start * up // down, end * up // down
        skipped = (start - low) * up // down
        out[:, :, first:stop] = part[:, :, skipped : skipped + stop - first]
    return out


def swish(x: Tensor) -> Tensor:
    """SiLU of a tensor that nobody else holds: in place where no gradient needs it."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def added(x: Tensor, change: Tensor) -> Tensor:
    """x + change; into `change`, which nobody else holds, where no gradient needs it."""
    return x + change if torch.is_grad_enabled() or x.dtype != change.dtype else change.add_(x)


def blended(convolved: Tensor, pooled: Tensor, mix_factor: Tensor) -> Tensor:
    """a * pooled + (1 - a) * convolved with a = sigmoid(mix_factor); into `convolved` as above."""
    share = torch.sigmoid(mix_factor).to(convolved.dtype)
    pooled = pooled.to(convolved.dtype)
    return convolved.lerp(pooled, share) if torch.is_grad_enabled() else convolved.lerp_(pooled, share)


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, padding: int = 0) -> Tensor:
    """Convolution of x (B, T, H, W, C) with a 3-D, 1-D (in time) or 2-D kernel, by the weight's number of axes.

    stride: in time for 3-D and 1-D kernels, in space for 2-D ones. padding: zeros on both sides, in time for 3-D and
    1-D kernels; 3-D kernels keep the size of the frames, and 2-D ones add it in space.
    """
    if weight[0, 0].numel() == 1:
        return F.linear(x, weight.flatten(1), bias)
    if weight.dim() == 5:
        y = F.conv3d(x.permute(0, 4, 1, 2, 3), weight, bias, (stride, 1, 1), (padding, 1, 1))  # (B, C, T, H, W)
        return y.permute(0, 2, 3, 4, 1).contiguous()
    if weight.dim() == 4:
        y = F.conv2d(x.flatten(0, 1).permute(0, 3, 1, 2), weight, bias, stride, padding)  # (B*T, C, H, W)
        return y.permute(0, 2, 3, 1).contiguous().unflatten(0, x.shape[:2])
    # each pixel is a column of a picture of T rows: twice as fast on CPUs as the same in three dimensions
    y = F.conv2d(x.flatten(2, 3).permute(0, 3, 1, 2), weight[..., None], bias, (stride, 1), (padding, 0))
    return y.permute(0, 2, 3, 1).contiguous().unflatten(2, x.shape[2:4])


class Norm(nn.Module):
    """LayerNorm over the channels of one position: no norm mixes frames or pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class CausalConv(nn.Module):
    """A convolution that puts its frames in front: output frame j sees input frames up to stride * (j + 1) - 1.

    Before the first frame stand zeros (1.0) or copies of it (1.1).
    """

    def __init__(self, conv: nn.Conv3d | nn.Conv1d, replicate: bool) -> None:
        super().__init__()
        self.conv = conv
        self.stride = conv.stride[0]
        self.front = conv.kernel_size[0] - self.stride
        self.replicate = replicate
        self.name = ""  # in its network, which sets it

    def extended(self, x: Tensor, memory: Memory | None, count: int | None = None) -> Tensor:
        """x with the `count` frames before it, which are kept for the next step."""
        count = self.front if count is None else count
        if not count:
            return x
        front = None if memory is None else memory.front(self.name)
        if front is None:
            first = x[:, :1].expand(-1, count, -1, -1, -1)
            front = first if self.replicate else torch.zeros_like(first)
        x = torch.cat([front, x], dim=1)
        if memory is not None:
            memory.keep(self.name, x[:, -count:])
        return x

    def over(self, x: Tensor) -> Tensor:
        """The convolution of frames that have been extended."""
        return convolved(x, self.conv.weight, self.conv.bias, self.stride)

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        return self.over(self.extended(x, memory))


class Centred:
    """A convolution of the non-causal models: zeros on both sides."""

    def extended(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        """The convolution pads by itself, and remembers nothing."""
        return x

    def over(self, x: Tensor) -> Tensor:
        """The convolution."""
        return convolved(x, self.weight, self.bias, padding=self.kernel_size[0] // 2)

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        return self.over(x)


class CentredConv3d(Centred, nn.Conv3d):
    """In space and time."""


class CentredConv1d(Centred, nn.Conv1d):
    """In time alone."""


def conv3d(config: Tokenizer3DConfig, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    """A 3-D convolution of the model's family; the stride is one in time."""
    if config.causal:
        return CausalConv(nn.Conv3d(inputs, outputs, kernel, (stride, 1, 1)), config.version == "1.1")
    return CentredConv3d(inputs, outputs, kernel, (stride, 1, 1))


def conv1d(config: Tokenizer3DConfig, channels: int) -> nn.Module:
    """A convolution over the frames of each pixel."""
    if config.causal:
        return CausalConv(nn.Conv1d(channels, channels, 3), config.version == "1.1")
    return CentredConv1d(channels, channels, 3)


class FrameConv(nn.Conv2d):
    """2-D convolution of every frame."""

    def forward(self, x: Tensor) -> Tensor:
        return convolved(x, self.weight, self.bias, self.stride[0], self.padding[0])


class SpatialBlock(nn.Module):
    """Residual block of 3x3 convolutions on each frame; a level's first one changes the number of channels."""

    reach = 2  # rows above and below that a row of the result depends on

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = Norm(inputs)
        self.conv1 = FrameConv(inputs, outputs, 3, padding=1)
        self.norm2 = Norm(outputs)
        self.conv2 = FrameConv(outputs, outputs, 3, padding=1)
        self.nin_shortcut = FrameConv(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        h = self.conv1(swish(self.norm1(x)))
        h = swish(self.norm2(h))
        h = self.conv2(h)
        return added(x if self.nin_shortcut is None else self.nin_shortcut(x), h)


class TimeBlock(nn.Module):
    """Residual block whose convolutions see earlier frames: of each pixel alone, or 3x3x3 in the middle."""

    reach = 0

    def __init__(self, config: Tokenizer3DConfig, channels: int, full: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(channels), Norm(channels)
        self.conv1, self.conv2 = (
            conv3d(config, channels, channels) if full else conv1d(config, channels) for _ in range(2)
        )
        if not full:  # a new model starts as one of single frames
            last = self.conv2.conv if config.causal else self.conv2
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        h = self.conv1.extended(swish(self.norm1(x)), memory)  # in two steps: the shorter tensor goes before the
        h = self.conv1.over(h)  # result comes
        h = swish(self.norm2(h))
        h = self.conv2.extended(h, memory)
        return added(x, self.conv2.over(h))


class FrameAttention(nn.Module):
    """Attention of one head among the positions of a frame; frames do not see each other."""

    def __init__(self, config: Tokenizer3DConfig, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels)
        self.q, self.k, self.v, self.proj_out = (conv3d(config, channels, channels, kernel=1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        batch, frames, height, width, channels = h.shape
        q, k, v = (layer(h).reshape(batch * frames, 1, height * width, channels) for layer in (self.q, self.k, self.v))
        h = attention(q, k, v).reshape(batch, frames, height, width, channels)
        return added(x, self.proj_out(h))


class Middle(nn.Module):
    """The blocks at the lowest resolution, which need the whole frame."""

    def __init__(self, config: Tokenizer3DConfig, channels: int) -> None:
        super().__init__()
        self.block_1 = TimeBlock(config, channels, full=True)
        self.attn_1 = FrameAttention(config, channels)
        self.block_2 = TimeBlock(config, channels, full=True)

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x, memory)), memory)


class SpaceDown(nn.Module):
    """Half the size: 3x3 with stride 2, one zero column on the right and one zero row below. Odd sizes lose a line."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = FrameConv(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        return in_strips(self.halved, x, memory, 0, 1, down=2)

    def halved(self, x: Tensor, memory: Memory | None) -> Tensor:
        """A strip that is followed by another one has that one's first row as its last."""
        return self.conv(F.pad(x, (0, 0, 0, 1, 0, 1)))


class SpaceUp(nn.Module):
    """Twice the size: each pixel four times, then 3x3.

    Computed without the repeated pixels: rows 2i see x[i-1], x[i], rows 2i+1 see x[i], x[i+1], and the taps that fall
    on the same pixel are added up before. That is four 2x2 convolutions, 4/9 of the multiplications.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = FrameConv(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        return in_strips(self.doubled, x, memory, 1, 1, up=2)

    def doubled(self, x: Tensor, memory: Memory | None) -> Tensor:
        """All rows of x (B, T, H, W, C)."""
        height, width = x.shape[2:4]
        out = None
        for dy, rows in enumerate(two_taps(self.conv.weight, 2)):
            for dx, weight in enumerate(two_taps(rows, 3)):
                part = convolved(x, weight, self.conv.bias, padding=1)  # (B, T, H + 1, W + 1, C)
                if out is None:
                    out = part.new_empty(*x.shape[:2], 2 * height, 2 * width, x.shape[4])
                out[:, :, dy::2, dx::2] = part[:, :, dy : dy + height, dx : dx + width]
        return out


def two_taps(weight: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The two kernels of two taps that a kernel of three becomes where every sample occurs twice in a row.

    Three neighbours among s s t t are s t t (the first kernel) or s s t: the taps of a repeated sample are added up.
    """
    first, middle, last = weight.unbind(axis)
    return torch.stack([first, middle + last], axis), torch.stack([first + middle, last], axis)


class TimeDown(nn.Module):
    """Half the frames: a blend of the mean of three frames and a convolution with stride 2 in time."""

    def __init__(self, config: Tokenizer3DConfig, channels: int) -> None:
        super().__init__()
        self.causal = config.causal
        self.mix_factor = nn.Parameter(torch.tensor([MIX]))
        self.conv = conv3d(config, channels, channels, stride=2)

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        return in_strips(self.halved, x, memory, 1, 1)

    def halved(self, x: Tensor, memory: Memory | None) -> Tensor:
        """All rows of x (B, T, H, W, C)."""
        if self.causal:
            x, conv = self.conv.extended(x, memory), self.conv.conv
        else:
            x, conv = F.pad(x, (0, 0, 0, 0, 0, 0, 0, 1)), self.conv
        frames = (x.shape[1] - 1) // 2
        pooled = sum(x[:, start : start + 2 * frames : 2] for start in range(3)) / 3
        return blended(convolved(x, conv.weight, conv.bias, stride=2), pooled, self.mix_factor)


class TimeUp(nn.Module):
    """Twice the frames, each of them repeated: a blend of the repeated frames and a convolution over them (1.0).

    Computed without the repeated frames as in `SpaceUp`: two kernels of two frames, a third of the multiplications.
    """

    def __init__(self, config: Tokenizer3DConfig, channels: int) -> None:
        super().__init__()
        self.causal = config.causal
        self.mix_factor = nn.Parameter(torch.tensor([MIX]))
        self.conv = conv3d(config, channels, channels)

    def forward(self, x: Tensor | None, memory: Memory | None = None) -> Tensor | None:
        return None if x is None else in_strips(self.doubled, x, memory, 1, 1)

    def doubled(self, x: Tensor, memory: Memory | None) -> Tensor:
        """All rows of x (B, T, H, W, C)."""
        conv, frames = (self.conv.conv if self.causal else self.conv), x.shape[1]
        once, twice = two_taps(conv.weight, 2)
        if self.causal:  # 2i sees x[i-1] twice, 2i+1 sees it once
            padded = self.conv.extended(x, memory, 1)
            kernels = ((twice, 0), (once, 0))
        else:  # 2i sees x[i-1] once, 2i+1 sees x[i] twice and x[i+1]
            padded = F.pad(x, (0, 0, 0, 0, 0, 0, 1, 1))
            kernels = ((once, 0), (twice, 1))
        out = None
        for phase, (weight, start) in enumerate(kernels):
            part = convolved(padded[:, start : start + frames + 1], weight, conv.bias)
            part = blended(part, x, self.mix_factor)
            if out is None:
                out = part.new_empty(x.shape[0], 2 * frames, *x.shape[2:])
            out[:, phase::2] = part
        return out


class LinearTimeUp(nn.Module):
    """Twice the frames by linear interpolation (1.1): a blend of them and a convolution over them.

    The frames of the first latent, `segment` of them here, are interpolated among themselves, and so are all others;
    at the ends of both a frame stands for its missing neighbour. So a frame needs the one after it: what is given lags.
    """

    def __init__(self, config: Tokenizer3DConfig, channels: int, segment: int) -> None:
        super().__init__()
        self.mix_factor = nn.Parameter(torch.tensor([MIX]))
        self.conv = conv3d(config, channels, channels)
        self.segment = segment

    def forward(self, x: Tensor | None, memory: Memory | None = None) -> Tensor | None:
        """None stands for no frames: before all that is asked for, or after the last one."""
        x = self.interpolated(x, memory)
        return None if x is None else in_strips(self.refined, x, memory, 1, 1)

    def refined(self, x: Tensor, memory: Memory | None) -> Tensor:
        """The blend with a convolution, all rows of the interpolated frames."""
        padded = self.conv.extended(x, memory)
        return blended(convolved(padded, self.conv.conv.weight, self.conv.conv.bias), x, self.mix_factor)

    def interpolated(self, x: Tensor | None, memory: Memory | None) -> Tensor | None:
        """The frames that are known by now."""
        name = f"{self.conv.name}.interpolation"
        frames = [] if x is None else list(x.unbind(1))
        index = 0 if memory is None else memory.count(name, len(frames))
        before = None if memory is None or not index else memory.front(name)[:, 0]
        out = []
        for frame in frames:
            starts = index in (0, self.segment)
            out += [frame] if starts else [torch.lerp(before, frame, 0.25), torch.lerp(before, frame, 0.75)]
            before, index = frame, index + 1
            if index == self.segment:  # the end of the first latent, known without looking ahead
                out.append(frame)
        if index > self.segment and (memory is None or memory.last):
            out.append(before)
        if memory is not None and frames:
            memory.keep(name, before[:, None])
        return torch.stack(out, 1) if out else None
