"""A dataset as the loader asks for it: by (index, position), with errors that name the sample."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Any

from torch.utils.data import ConcatDataset, Dataset, Subset, default_collate

from training.sampler import Key
from videodata.errors import UserError


@dataclass
class SampleFailure:
    """A sample that cannot be read. It travels from the worker as data, so that its one-line message survives."""

    message: str


class KeyedDataset(Dataset):
    """Gives `dataset[(index, position)]` for any dataset.

    A dataset with the attribute `takes_positions = True` is asked for `dataset[(index, position)]` and draws its
    augmentation from (its seed, position). Any other is asked for `dataset[index]`. Subset and ConcatDataset pass
    the position on to what they contain.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Any:
        try:
            return read_sample(self.dataset, *key)
        except UserError as error:
            return SampleFailure(f"sample {self.describe(key[0])}: {error}")
        except Exception as error:  # a bug in the dataset: keep its traceback and add which sample it was
            raise RuntimeError(f"sample {self.describe(key[0])}: {type(error).__name__}: {error}") from error

    def describe(self, index: int) -> str:
        """The index, and the sample's id where the dataset can tell it."""
        describe = getattr(self.dataset, "describe", None)
        if describe is None:
            return str(index)
        described = describe(index)
        return f"{index} ({described.get('id', described) if isinstance(described, dict) else described})"


def read_sample(dataset: Dataset, index: int, position: int) -> Any:
    """One sample, by (index, position) where the dataset knows positions."""
    if getattr(dataset, "takes_positions", False):
        return dataset[(index, position)]
    if type(dataset) is Subset:
        return read_sample(dataset.dataset, dataset.indices[index], position)
    if type(dataset) is ConcatDataset:
        part = bisect.bisect_right(dataset.cumulative_sizes, index)
        before = dataset.cumulative_sizes[part - 1] if part else 0
        return read_sample(dataset.datasets[part], index - before, position)
    return dataset[index]


def collate(samples: list[Any]) -> Any:
    """Stack samples to a batch, or pass on the first failure among them."""
    failures = [sample for sample in samples if isinstance(sample, SampleFailure)]
    return failures[0] if failures else default_collate(samples)
