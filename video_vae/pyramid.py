"""The recurrent pyramid: what the encoder, the decoder and the generator of the video VAE all are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from video_vae.block import ContextBlock
from video_vae.cell import TransformerLSTMCell
from video_vae.config import VideoVAEConfig
from video_vae.resample import down, up

Maps = list[Tensor]  # one map (B, h_l, w_l, dim_l) per level, level 1 (the finest) first


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
                gate=config.gate,
                noise=config.cell_noise,
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

    def start(self, values: Maps) -> Maps:
        """States whose values are these maps."""
        return [cell.start(value) for cell, value in zip(self.cells, values, strict=True)]

    def values(self, states: Maps) -> Maps:
        """The maps that other parts of the model see."""
        return [cell.value(state) for cell, state in zip(self.cells, states, strict=True)]

    def step(self, x: Tensor, states: Maps, extras: Sequence[Maps] = ()) -> tuple[Tensor, Maps]:
        """Input x (B, h, w, in_dim) and states -> (output of the block, new states)."""
        values = self.values(states)
        from_above = self.contexts(values)
        given = [[maps[level] for maps in extras] for level in range(len(states))]
        z = self.block(x, [*given[0], values[0], *from_above[0]])
        skips = self.skip_inputs(x)
        new_states: Maps = []
        for level, cell in enumerate(self.cells):
            below = z if level == 0 else self.downs[level - 1](self.cells[level - 1].value(new_states[-1]))
            new_states.append(cell(below + skips[level], states[level], [*given[level], *from_above[level]]))
        return z, new_states

    def contexts(self, values: Maps) -> list[Maps]:
        """For each level, the values of all coarser levels brought to its grid and width."""
        at_level: list[Maps] = [[] for _ in values]
        for top, chain in enumerate(self.ups, start=1):
            x = values[top]
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
