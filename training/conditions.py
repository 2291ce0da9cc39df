"""Class labels as a condition of a generator, and classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598).

Classes are numbered from 0; the number after the last of `classes` classes means "no class". A network learns that too,
from the clips whose label is dropped in training, and so one network gives both predictions that guidance compares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from videodata.labels import class_number


class ClassEmbedding(nn.Module):
    """A vector for each class, and a last one for none."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.none = classes  # the number of "no class"
        self.table = nn.Embedding(classes + 1, dim)
        nn.init.normal_(self.table.weight, std=0.02)  # beside a time code of size 1, as in DiT (arXiv 2212.09748)

    def forward(self, labels: Tensor) -> Tensor:
        """Labels (B,) int64 in [0, classes] -> (B, dim)."""
        return self.table(labels)


def drop_labels(labels: Tensor, classes: int, probability: float, uniform: Tensor) -> Tensor:
    """Labels (B,) with "no class" where `uniform` (B,), numbers in [0, 1), is below the probability."""
    return torch.where(uniform < probability, classes, labels)


def guided(predict: Callable[[Tensor], Tensor], labels: Tensor, none: int, guidance: float) -> Tensor:
    """What `predict` says of labels (B,), led away from what it says of the number `none`, by equation 6 of the paper.

    guidance is 1 + the paper's w: 1 is the plain prediction, bit for bit, and costs one call; 0 ignores the class.
    """
    if guidance == 1:
        return predict(labels)
    without = predict(torch.full_like(labels, none))
    return without + guidance * (predict(labels) - without)


def class_numbers(classes: Sequence[str], labels: Sequence[str | None]) -> Tensor:
    """The numbers (B,) int64 of labels; None becomes "no class". Raises UserError for a label that is no class."""
    numbers = [len(classes) if label is None else class_number(classes, label) for label in labels]
    return torch.tensor(numbers, dtype=torch.int64)
