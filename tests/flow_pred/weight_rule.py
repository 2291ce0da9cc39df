"""Weights that are a function of their key, so that fixtures of large models need not store them."""

import math

import numpy as np
import torch

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def fill_by_rule(module: torch.nn.Module, seed: int) -> None:
    """Set every entry of the state dict by the rule."""
    state = {key: by_rule(key, tuple(value.shape), seed) for key, value in module.state_dict().items()}
    module.load_state_dict(state)


def by_rule(key: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    last = key.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.tensor(0)
    r = hashed(key, math.prod(shape), seed).reshape(shape)
    if last == "running_var":
        r = 1 + 0.5 * r
    elif last == "running_mean":
        r = 0.1 * r
    elif key.endswith(("embedding.weight", "_embed.weight")):
        pass
    elif len(shape) >= 2:
        r = r * math.sqrt(3 / math.prod(shape[1:]))
    else:
        r = 1 + 0.1 * r if last == "weight" else 0.1 * r
    return torch.from_numpy(r.astype(np.float32))


def hashed(key: str, count: int, seed: int) -> np.ndarray:
    """`count` numbers in [-1, 1): splitmix64 over the FNV-1a hash of the key."""
    h = 0xCBF29CE484222325
    for byte in key.encode():
        h = ((h ^ byte) * 0x100000001B3) & MASK
    base = (h + seed * GOLDEN + GOLDEN) & MASK
    with np.errstate(over="ignore"):
        z = np.arange(count, dtype=np.uint64) + np.uint64(base)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return 2 * (z >> np.uint64(40)).astype(np.float64) / 2**24 - 1
