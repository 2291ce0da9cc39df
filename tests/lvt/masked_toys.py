"""Models of a few codes whose probabilities are known: the decoder hands on what is visible, the head looks it up."""

import itertools

import torch
from torch import nn

from lvt.transformer import VideoTransformer

HIDDEN = -1.0


class ShowingDecoder(nn.Module):
    """Features of a position: all codes of the slice, -1 where hidden, and the position's own number."""

    def __init__(self, codebooks, size):
        super().__init__()
        self.ch_embedder = nn.ModuleList(nn.Embedding(size, 1) for _ in range(codebooks))

    def conditions(self, encoded):
        return encoded

    def forward(self, codes, encoded, mask, conditions=None):
        shown = torch.where(mask[:, None], HIDDEN, codes.float()).flatten(2)  # (B, C, n)
        places = shown.shape[2]
        state = shown.transpose(1, 2).flatten(1)[:, None].expand(-1, places, -1)  # (B, n, n C)
        own = torch.arange(places, dtype=torch.float).view(1, -1, 1).expand(len(codes), -1, 1)
        return torch.cat([state, own], 2).unflatten(1, codes.shape[2:])


class LookingHead(nn.Module):
    """Logits of codebook k of a position from a function of (shown codes (n, C) as nested tuples, position, codes of
    the earlier codebooks).
    """

    def __init__(self, codebooks, rule):
        super().__init__()
        self.nc, self.rule, self.layer_norm, self.known = codebooks, rule, nn.Identity(), {}

    def forward(self, features, codes, embeddings):
        return [self.logits(k, self.hidden(k, features, codes), None) for k in range(self.nc)]

    def hidden(self, k, y, codes):
        rows = torch.cat([y, codes[..., :k].to(y.dtype)], -1)
        flat, places = rows.flatten(0, -2).unique(dim=0, return_inverse=True)
        table = torch.stack([self.look_up(k, tuple(int(value) for value in row)) for row in flat])
        return table[places].unflatten(0, rows.shape[:-1])

    def look_up(self, k, row):
        if (k, row) not in self.known:
            end = len(row) - k
            shown, own, earlier = row[: end - 1], row[end - 1], row[end:]
            frames = tuple(zip(*(shown[c :: self.nc] for c in range(self.nc)), strict=True))
            self.known[k, row] = self.rule(frames, own, earlier)
        return self.known[k, row]

    def logits(self, k, hidden, embedding):
        return hidden


def toy_model(places, codebooks, size, rule, **masked):
    """A VideoTransformer over clips of one frame with so many codes; MASKED.STEPS is one per code by default."""
    node = {
        "NC": codebooks, "NV": size, "D": 2, "DA": 1, "DE": 1, "KERNEL": (1, 1, 1), "STRIDE": (1, 1, 1),
        "BLOCKS_E": [], "N_HEAD_E": [], "BLOCKS_D": [(1, 1, 1)], "N_HEAD_D": [1], "SHARE_P": False,
        "DECODER": "masked", "MASKED": {"STEPS": places, **masked},
    }  # fmt: skip
    model = VideoTransformer(node).eval()
    model.decoder, model.ch_predictor = ShowingDecoder(codebooks, size), LookingHead(codebooks, rule)
    return model


def rule_of_joint(joint, places, codebooks):
    """The conditionals of one joint distribution: a tensor with an axis of V for each code, position by position."""

    def rule(shown, own, earlier):
        index = [slice(None) if code < 0 else code for codes in shown for code in codes]
        for k, code in enumerate(earlier):
            index[own * codebooks + k] = code
        free = [axis for axis, entry in enumerate(index) if isinstance(entry, slice)]
        table = joint[tuple(index)]
        kept = free.index(own * codebooks + len(earlier)) if own * codebooks + len(earlier) in free else None
        if kept is None:  # a visible code, which nobody asks for
            return torch.zeros(joint.shape[0])
        others = [axis for axis in range(len(free)) if axis != kept]
        return (table.sum(others) if others else table).log()

    return rule


def random_rule(size, seed):
    """Conditionals that belong to no joint distribution: a random one for each thing that can be seen."""

    def rule(shown, own, earlier):
        generator = torch.Generator().manual_seed(hash((shown, own, earlier, seed)) % 2**31)
        return torch.randn(size, generator=generator) * 1.5

    return rule


def masks_of_size(places, count):
    """All masks of `count` of the places: bool (number, 1, 1, places)."""
    chosen = list(itertools.combinations(range(places), count))
    masks = torch.zeros(len(chosen), 1, 1, places, dtype=torch.bool)
    for row, own in enumerate(chosen):
        masks[row, 0, 0, list(own)] = True
    return masks
