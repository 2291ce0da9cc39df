"""Models and stored numbers of the parity fixtures of VideoVAE+."""

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from vvae import AutoencoderKL2plus1D_1dcnn


def made_up_weight(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """The weight that the fixtures prescribe for a key: a pure function of its name, shape and seed."""
    stream = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)  # its streams are frozen
    uniform = 2.0 * stream.random_sample(int(np.prod(shape, dtype=np.int64))) - 1.0
    if len(shape) >= 2:
        gain = 4.0 if key.endswith("embeddings_table") else 1.0
        values = uniform * gain * np.sqrt(3.0 / np.prod(shape[1:], dtype=np.int64))
    elif key.endswith(".weight"):
        values = 1.0 + 0.25 * uniform
    else:
        values = 0.1 * uniform
    return torch.from_numpy(values.reshape(shape).astype(np.float32))


def weights_of(name: str, folder: Path, meta: dict, shapes: dict) -> dict[str, Tensor]:
    """The fixture's state dict, from its files or by recipe (then checked against the stored hash)."""
    if meta["weights"] == "file":
        parts = [load_file(str(folder / f"{name}_weights_{part}of2.safetensors")) for part in (1, 2)]
        return {key: value.float() for part in parts for key, value in part.items()}
    state = {key: made_up_weight(key, shape, int(meta["seed"])) for key, shape in shapes.items()}
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(state[key].numpy().tobytes())
    assert digest.hexdigest() == meta["sha256"]
    return state


def fixture_model(name: str, folder: Path) -> tuple[AutoencoderKL2plus1D_1dcnn, dict[str, Tensor], dict]:
    """The model of a fixture with its weights, the stored tensors, and the metadata."""
    path = str(folder / f"{name}_io.safetensors")
    with safe_open(path, "pt") as file:
        meta = file.metadata()
    with torch.device("meta"):
        model = AutoencoderKL2plus1D_1dcnn(**json.loads(meta["config"]), prune_unused=False)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict(weights_of(name, folder, meta, shapes), assign=True)
    return model.eval(), load_file(path), meta
