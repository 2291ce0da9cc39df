"""Block-local attention that computes its relative positions inside the kernel (FlexAttention).

For large blocks: memory grows with the number of tokens n, not with n squared. Fast only on a GPU, where the kernel is
compiled; on a CPU the same formula runs unfused.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from lvt.model_config import Triple


def flex_block_attention(
    query: Tensor, key: Tensor, value: Tensor, banks: tuple[Tensor, Tensor, Tensor], block: Triple, causal: bool
) -> Tensor:
    """Attention of (N, M, n, A) with the bias banks (M, 2 b - 1) of the three axes of a block."""
    bt, bh, bw = block
    dt_bank, dh_bank, dw_bank = banks

    def relative(score: Tensor, batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        dt = i // (bh * bw) - j // (bh * bw) + bt - 1
        dh = i // bw % bh - j // bw % bh + bh - 1
        dw = i % bw - j % bw + bw - 1
        return score + dt_bank[head, dt] + dh_bank[head, dh] + dw_bank[head, dw]

    mask = causal_mask(prod(block), str(query.device)) if causal else None
    attend = compiled_flex_attention() if query.is_cuda else flex_attention
    return attend(query, key, value, score_mod=relative, block_mask=mask)


def not_later(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return j <= i


@lru_cache(maxsize=16)
def causal_mask(tokens: int, device: str) -> BlockMask:
    """Lets a query see itself and what is before it."""
    return create_block_mask(not_later, None, None, tokens, tokens, device=device)


@lru_cache(maxsize=1)
def compiled_flex_attention() -> object:
    """Compiled once for the process."""
    return torch.compile(flex_attention)
