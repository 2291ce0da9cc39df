"""A tiny tokenizer with random weights in which every layer takes part, and a moving clip."""

import torch

from tokenizer3d import Tokenizer3D
from tokenizer3d.config import SHAPES, Tokenizer3DConfig

WIDTH = 8


def tiny(shape: str = "488", **settings) -> Tokenizer3D:
    """A new model, the same at each call, in eval mode; layers that start at zero get values, so that they matter."""
    config = Tokenizer3DConfig(**{"ch": WIDTH, "num_res_blocks": 1, **SHAPES[shape], **settings})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tokenizer3D(config)
        for name, parameter in model.named_parameters():
            if name.endswith("mix_factor"):
                torch.nn.init.uniform_(parameter.data, -1, 1)
            elif not parameter.any():
                torch.nn.init.normal_(parameter.data, std=0.05)
    return model.eval()


def clip(frames: int, height: int = 16, width: int = 24, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Noise that drifts, (B, 3, T, H, W) in [-1, 1]; the first frames of a longer one are those of a shorter one."""
    generator = torch.Generator().manual_seed(seed)
    still = torch.rand(batch, 3, 1, height, width, generator=generator) * 1.6 - 0.8
    frames = [
        still.roll((number, -number), (3, 4)) + 0.1 * torch.randn(still.shape, generator=generator)
        for number in range(frames)
    ]
    return torch.cat(frames, 2).clamp(-1, 1)
