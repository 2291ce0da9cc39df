"""Make videodata/digits.npz again, from the copy that scikit-learn ships: `python tests/videodata/export_digits.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

FILE = Path(__file__).resolve().parents[2] / "videodata" / "digits.npz"

# The labels tell where a form ends: on each, digits were to be written in one order, 0 to 9 three times and then the
# hundred that begin with 0 9 5 5 6 5. Some were unreadable, so not every form has all 130. These are the first of each.
FORMS = (0, 130, 256, 386, 516, 646, 776, 906, 1029, 1157, 1287, 1415, 1545, 1667)


def from_scikit_learn() -> dict[str, np.ndarray]:
    """images (1797, 8, 8) of 0 to 16, labels, and forms: the number of the sheet of paper that each was written on."""
    from sklearn.datasets import load_digits

    found = load_digits()
    forms = np.searchsorted(FORMS, np.arange(len(found.target)), side="right") - 1
    arrays = {"images": found.images, "labels": found.target, "forms": forms}
    return {name: array.astype(np.uint8) for name, array in arrays.items()}


if __name__ == "__main__":
    np.savez_compressed(FILE, **from_scikit_learn())
