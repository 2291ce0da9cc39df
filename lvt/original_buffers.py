"""The index tables that published transformer files hold beside the weights: all of them can be computed."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from lvt.model_config import TransformerConfig, Triple
from lvt.position_signal import inverse_timescales

TABLES = ("dt", "dh", "dw", "mask")
TIMESCALES = "inv_timescales"


def drop_recomputable(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without the index tables of attention layers and without the timescales."""
    return {key: value for key, value in state.items() if not is_recomputable(key)}


def is_recomputable(key: str) -> bool:
    """Whether a key of a published file names a table that follows from the configuration."""
    parts = key.split(".")
    if parts[-1] == TIMESCALES:
        return "positional_encoder" in parts
    return "block_local_attention" in parts and parts[-1] in TABLES


def recomputable(config: TransformerConfig) -> dict[str, Tensor]:
    """All tables that a published file of this configuration holds."""
    tables = {}
    for half, blocks, width in (("encoder", config.blocks_e, config.de), ("decoder", config.blocks_d, config.d)):
        tables[f"{half}.positional_encoder.{TIMESCALES}"] = inverse_timescales(width)
        for layer, block in enumerate(blocks):
            prefix = f"{half}.block_local_attention.{layer}."
            tables |= {prefix + name: value for name, value in attention_tables(block, half == "decoder").items()}
    return tables


def attention_tables(block: Triple, causal: bool) -> dict[str, Tensor]:
    """dt, dh, dw int64 (n * n): row of each bias bank for every query and key; mask (1, 1, n, n): 1 where j > i."""
    tokens = prod(block)
    places = torch.cartesian_prod(*(torch.arange(length) for length in block)).view(tokens, 3)
    rows = places[:, None] - places + torch.tensor(block) - 1  # (n, n, 3)
    tables = {name: rows[..., axis].flatten() for axis, name in enumerate(("dt", "dh", "dw"))}
    if causal:
        tables["mask"] = torch.ones(tokens, tokens).triu(1)[None, None]
    return tables
