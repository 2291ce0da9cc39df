"""Class labels of clips: the names that a data set has, their numbers, and clips together with the number of theirs."""

from __future__ import annotations

import bisect
import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from videodata.errors import UserError


def label_of(dataset: Any, index: int) -> str | None:
    """The label of an item, also of a Subset or ConcatDataset; None where the data set knows none."""
    dataset, index = taken_from(dataset, index)
    if hasattr(dataset, "label"):  # without drawing where the clip is cut
        return dataset.label(index)
    return dataset.describe(index).get("label") if hasattr(dataset, "describe") else None


def taken_from(dataset: Any, index: int) -> tuple[Any, int]:
    """The data set that an item of a Subset or ConcatDataset is taken from, and its number there."""
    if isinstance(dataset, Subset):
        return taken_from(dataset.dataset, dataset.indices[index])
    if isinstance(dataset, ConcatDataset):
        part = bisect.bisect_right(dataset.cumulative_sizes, index)
        return taken_from(dataset.datasets[part], index - (dataset.cumulative_sizes[part - 1] if part else 0))
    return dataset, index


def classes_of(dataset: Dataset) -> tuple[str, ...]:
    """The labels that occur, sorted. Raises UserError for an item without one: a class cannot be guessed."""
    if hasattr(dataset, "distinct_labels") and None not in (known := dataset.distinct_labels()):
        return tuple(sorted(known))
    found = set()
    for index in range(len(dataset)):
        label = label_of(dataset, index)
        if label is None:
            known = dataset.describe(index)["id"] if hasattr(dataset, "describe") else f"item {index}"
            raise UserError(f"{known} has no label, so a model of classes cannot be trained on it or shown it")
        found.add(label)
    return tuple(sorted(found))


def class_number(classes: Sequence[str], name: str) -> int:
    """Where a class stands among the classes. Raises UserError that names the nearest for one that is none of them."""
    if name in classes:
        return list(classes).index(name)
    if not classes:
        raise UserError(f"class {name!r}: the model was trained without classes")
    # A number is no slip of another number.
    near = [] if name.isdecimal() else difflib.get_close_matches(name, classes, 1, 0.5)
    some = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    advice = f"the nearest is {near[0]!r}" if near else f"there are {some}"
    raise UserError(f"class {name!r} is none of the {len(classes)} classes; {advice}")


class LabelledClips(Dataset):
    """The items of a data set as (clip, class number): int64 scalars, the places of their labels in `classes`.

    Everything else, such as `takes_positions`, `describe` and `provenance`, is that of the data set. Raises UserError
    for items without a label and for labels that are none of the classes.
    """

    def __init__(self, dataset: Dataset, classes: Sequence[str]) -> None:
        self.dataset, self.classes = dataset, tuple(classes)
        self._numbers = {name: class_number(self.classes, name) for name in classes_of(dataset)}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        if hasattr(self.dataset, "with_label"):  # a clip that cannot be read may have been replaced by another one
            clip, label = self.dataset.with_label(index)
        else:
            clip, label = self.dataset[index], label_of(self.dataset, index[0] if isinstance(index, tuple) else index)
        return clip, torch.tensor(self._numbers[label])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":  # while it is unpickled in a worker it has no data set yet
            raise AttributeError(name)
        return getattr(self.dataset, name)
