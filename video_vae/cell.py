"""The recurrent cell of the video VAE: an LSTM with exponential gates whose memory is read by a transformer block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_vae.block import ContextBlock
from video_vae.initial import orthogonal_

# Bias of the input gate: exp(-gelu(1)) = 0.43, so that at the start the frames of a clip weigh about alike in the final
# state. At 0 each frame would halve the share of all frames before it.
FIRST_ADMISSION = 1.0


class TransformerLSTMCell(nn.Module):
    """One recurrent level: input map z (B, h, w, input_dim), state (B, h, w, state_dim) -> new state.

    memory  = LN(f * value + i * candidate)          gates and candidate are linear in [value, z]
    reading = Block(memory, contexts)
    value   = LN(o * memory + (1 - o) * reading)     o = sigmoid(W [memory, reading])

    Gates: "exp_gelu" i, f = exp(-gelu(.)), in (0, 1.19]; "sigmoid" the classic LSTM; "xlstm" exponential gates with
    normaliser and stabiliser (Beck et al. 2024, arXiv 2405.04517, section 2.2), which add a log-weight to the state.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        input_dim: int,
        context_dims: Sequence[int] = (),
        gate: str = "exp_gelu",
        noise: float = 0.0,
        dropout: float = 0.0,
        strong: int = 0,
    ) -> None:
        super().__init__()
        self.dim, self.gate, self.noise = dim, gate, noise
        self.gates = nn.Linear(dim + input_dim, 3 * dim)
        # the candidate starts as the input alone, so that the memory is a plain sum of what was read
        nn.init.zeros_(self.gates.weight[2 * dim :, :dim])
        orthogonal_(self.gates.weight[2 * dim :, dim:])
        nn.init.constant_(self.gates.bias[:dim], FIRST_ADMISSION if gate == "exp_gelu" else 0.0)
        self.memory_norm = nn.LayerNorm(dim)
        self.block = ContextBlock(dim, heads, context_dims, dropout, strong)
        self.output_gate = nn.Linear(2 * dim, dim)
        self.value_norm = nn.LayerNorm(dim)

    def start(self, value: Tensor) -> Tensor:
        """The state whose value is this map (B, h, w, dim)."""
        return torch.cat([value, torch.zeros_like(value)], dim=-1) if self.gate == "xlstm" else value

    def value(self, state: Tensor) -> Tensor:
        """The part of a state that other levels see: (B, h, w, dim)."""
        return state[..., : self.dim]

    def forward(self, z: Tensor, state: Tensor, contexts: Sequence[Tensor] = ()) -> Tensor:
        value = self.value(state)
        gates = self.gates(torch.cat([self.perturb(value), self.perturb(z)], dim=-1))
        memory, log_weight = self.remember(gates, value, state[..., self.dim :])
        memory = self.memory_norm(memory)
        reading = self.block(memory, contexts)
        keep = torch.sigmoid(self.output_gate(torch.cat([memory, reading], dim=-1)))
        value = self.value_norm(reading + keep * (memory - reading))
        return torch.cat([value, log_weight], dim=-1) if self.gate == "xlstm" else value

    def remember(self, gates: Tensor, value: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Mix the old value and the candidate; `log_weight` is empty unless the gate is xlstm."""
        admit, forget, candidate = gates.chunk(3, dim=-1)
        if self.gate == "xlstm":
            # normaliser times exp(stabiliser) is one weight; its logarithm alone gives the same stable recurrence
            admit, kept = admit.float(), F.logsigmoid(forget.float()) + log_weight
            log_weight = torch.logaddexp(kept, admit)
            return (kept - log_weight).exp() * value + (admit - log_weight).exp() * candidate, log_weight
        if self.gate == "sigmoid":
            return torch.sigmoid(forget) * value + torch.sigmoid(admit) * candidate, log_weight
        return torch.exp(-F.gelu(forget)) * value + torch.exp(-F.gelu(admit)) * candidate, log_weight

    def perturb(self, x: Tensor) -> Tensor:
        """x plus the regularising noise of training."""
        return x + self.noise * torch.randn_like(x) if self.training and self.noise > 0 else x
