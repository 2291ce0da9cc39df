"""The one conversion between pixels and floats."""

import numpy as np
import pytest
import torch

from videodata import to_float, to_uint8
from videodata.pixels import denormalize, normalize, pad_sides


def test_every_level_survives_the_round_trip():
    """All 256 levels, the ends exactly -1 and 1, and the axes moved as documented."""
    frames = np.arange(256, dtype=np.uint8).repeat(3).reshape(4, 8, 8, 3)
    clip = to_float(frames)
    assert clip.shape == (3, 4, 8, 8)
    assert clip.dtype == torch.float32
    assert (clip.min(), clip.max()) == (-1, 1)
    assert np.array_equal(to_uint8(clip), frames)
    assert torch.equal(clip[1, 2, 3], torch.from_numpy(frames[2, 3, :, 1]) / 127.5 - 1)
    assert np.array_equal(to_uint8(to_float(frames[None])), frames[None])


def test_floats_are_rounded_and_clamped():
    """0.6 of a level rounds up, 0.4 down, and what lies outside [-1, 1] is clamped, in half precision too."""
    levels = torch.tensor([9.6, 9.4, -3.0, 300.0])
    assert denormalize(levels / 127.5 - 1).tolist() == [10, 9, 0, 255]
    assert denormalize(normalize(torch.arange(256, dtype=torch.uint8)).bfloat16()).tolist()[::255] == [0, 255]


def test_wrong_types_and_layouts_are_named():
    """A float where pixels belong, pixels where floats belong, channels in the wrong place."""
    with pytest.raises(TypeError, match="uint8, found torch.float32"):
        normalize(torch.zeros(3))
    with pytest.raises(TypeError, match="found torch.uint8"):
        denormalize(torch.zeros(3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"found \(3, 4, 8, 8\)"):
        to_float(np.zeros((3, 4, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"found \(4, 8, 8, 3\)"):
        to_uint8(torch.zeros(4, 8, 8, 3))


def test_sides_are_padded_with_their_border():
    """As far as the multiple needs; frames that fit are not copied."""
    frames = torch.rand(2, 3, 5, 8)
    padded = pad_sides(frames, 4)
    assert padded.shape == (2, 3, 8, 8) and torch.equal(padded[..., :5, :], frames)
    assert torch.equal(padded[..., 5:, :], frames[..., 4:, :].expand(2, 3, 3, 8))
    assert pad_sides(padded, 4) is padded
    corner = pad_sides(torch.arange(6.0).view(2, 3), 4)
    assert corner.tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]
