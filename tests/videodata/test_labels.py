"""Class labels: the same from every format, their numbers, and clips with the number of theirs.

What published data sets keep of theirs is looked at in test_datasets.py.
"""

import logging
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset

from scripts import prepare_data
from videodata import UserError, open_clips, write_video
from videodata.labels import LabelledClips, class_number, classes_of, label_of
from videodata.provenance import provenance_of

DIGITS = "digits:40,frames=4,size=12,digits=1"


def open_digits(source, **options):
    return open_clips(source, 4, 12, split="train", windows="first", **options)


@pytest.mark.parametrize("form", ["npy", "hdf5", "frames"])
def test_prepared_digits_keep_their_labels(tmp_path, form):
    """One-digit videos through every format on disk: the same clips have the numbers of the generated source."""
    flags = ["--count", "40", "--frames", "4", "--width", "12", "--height", "12", "--digits", "1", "--workers", "1"]
    flags += ["--num_frames", "4", "--format", form]
    prepare_data.main(["digits", "--out", str(tmp_path / "out"), *flags])
    generated, stored = open_digits(DIGITS), open_digits(tmp_path / "out")
    classes = classes_of(stored)
    assert classes == classes_of(generated) == tuple("0123456789")
    shown = {clip.numpy().tobytes(): int(number) for clip, number in LabelledClips(generated, classes)}
    assert len(shown) == 32
    assert {clip.numpy().tobytes(): int(number) for clip, number in LabelledClips(stored, classes)} == shown


def test_items_are_clips_with_int64_numbers():
    """By index and by position, through a loader's workers, in parts and put together; all else as without labels."""
    plain = open_clips(DIGITS, 2, 12, seed=3)
    clips = LabelledClips(plain, tuple("0123456789"))
    for key in (5, (5, 17), -1):
        clip, number = clips[key]
        assert torch.equal(clip, plain[key]) and number.dtype == torch.int64 and number.shape == ()
        assert str(int(number)) == plain.describe(key)["label"] == label_of(plain, key)
    batch, numbers = next(iter(DataLoader(clips, 4, num_workers=1)))
    assert batch.shape == (4, 3, 2, 12, 12) and numbers.tolist() == [int(clips[index][1]) for index in range(4)]
    assert clips.takes_positions and clips.describe(3) == plain.describe(3) and clips.labels() == plain.labels()
    assert provenance_of(clips) == plain.provenance() and clips.fingerprint() == plain.fingerprint()
    assert clips.items_of(plain.provenance()["ids"][:2]) == len(pickle.loads(pickle.dumps(clips))) - 38 == 2
    parts = ConcatDataset([Subset(plain, [9, 4]), plain])
    labels = [plain.describe(index)["label"] for index in (9, 4, 0, 1)]
    assert [label_of(parts, index) for index in range(4)] == labels
    assert [str(int(LabelledClips(parts, clips.classes)[index][1])) for index in range(4)] == labels


def test_a_clip_in_place_of_a_broken_one_has_its_own_label(tmp_path, caplog):
    """on_error="skip" gives the next video: the number is that of what is shown."""
    for name in ("axe", "bow"):
        (tmp_path / name).mkdir()
        write_video(tmp_path / name / "v.mp4", np.full((4, 16, 16, 3), 99, np.uint8), 25)
    clips = LabelledClips(open_clips(tmp_path, 2, 16, on_error="skip"), ["axe", "bow"])
    assert [int(number) for _, number in clips] == [0, 1]
    (tmp_path / "axe" / "v.mp4").write_bytes(b"broken since")
    with caplog.at_level(logging.WARNING):
        assert int(clips[0][1]) == 1


def test_what_has_no_class_is_one_line(tmp_path):
    """Videos without a label, labels that a model does not know, names that are misspelled, models without classes."""
    np.save(tmp_path / "plain.npy", np.zeros((2, 4, 12, 12, 3), np.uint8))
    with pytest.raises(UserError, match="plain#0 has no label"):
        classes_of(open_clips(tmp_path / "plain.npy", 2, 12))
    assert label_of(torch.zeros(3), 0) is None
    with pytest.raises(UserError, match="class '3' is none of the 3 classes; there are 0, 1, 2"):
        LabelledClips(open_clips(DIGITS, 2, 12), "012")
    assert class_number(("Archery", "Biking"), "Biking") == 1
    with pytest.raises(UserError, match="none of the 2 classes; the nearest is 'Archery'"):
        class_number(("Archery", "Biking"), "archery")
    with pytest.raises(UserError, match="trained without classes"):
        class_number((), "Archery")
