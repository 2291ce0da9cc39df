"""Resizing: the geometry of each rule, and the same picture from a file and from an array."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from videodata import UserError, read_video
from videodata.resize import place, resize_frames


@pytest.mark.parametrize(
    ("native", "target", "rule", "expected"),
    [
        ((240, 320), (64, 64), "crop", ((64, 85), (64, 64), 0, 10)),
        ((320, 240), (64, 64), "crop", ((85, 64), (64, 64), 10, 0)),
        ((240, 320), (64, 64), "squeeze", ((64, 64), (64, 64), 0, 0)),
        ((240, 320), (64, 64), "pad", ((48, 64), (64, 64), -8, 0)),
        ((240, 320), (240, 320), "none", ((240, 320), (240, 320), 0, 0)),
        ((240, 320), None, "crop", ((240, 320), (240, 320), 0, 0)),
        ((1, 1), (64, 32), "crop", ((64, 64), (64, 32), 0, 16)),
        ((51, 75), (50, 75), "crop", ((51, 75), (50, 75), 0, 0)),
    ],
)
def test_placement(native, target, rule, expected):
    """crop covers and cuts the centre, squeeze ignores the aspect, pad adds black, none and None change nothing."""
    assert place(native, target, rule) == expected


def test_sizes_that_make_no_sense_are_refused():
    """A rule that does not exist, "none" with another size, a crop larger than the scaled frame."""
    with pytest.raises(UserError, match="unknown resize rule 'stretch': use one of crop, squeeze, pad, none"):
        place((10, 10), (5, 5), "stretch")
    with pytest.raises(UserError, match='"none" keeps 10x10'):
        place((10, 10), (5, 5), "none")
    with pytest.raises(UserError, match="smaller than the crop"):
        place((10, 10), (8, 8), "crop", short_side=6)


def area_weights(source: int, target: int) -> np.ndarray:
    """(target, source): how much of target cell i lies over source cell j; each row sums to one."""
    edges = np.arange(target + 1) * (source / target)
    cells = np.arange(source)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return overlap.clip(0) * (target / source)


def test_area_is_the_mean_of_the_covered_pixels():
    """Whole factors equal average pooling; for others each pixel counts by its covered share and none is lost."""
    frames = np.random.default_rng(0).integers(0, 256, (3, 24, 36, 3), dtype=np.uint8)
    pooled = functional.avg_pool2d(torch.from_numpy(frames).movedim(-1, 1).double(), (4, 6)).movedim(1, -1)
    assert abs(resize_frames(frames, (6, 6), "squeeze") - pooled.numpy()).max() <= 0.5 + 1e-4
    weights = area_weights(10, 7)
    assert weights.sum(1) == pytest.approx(np.ones(7))
    assert weights.sum(0) == pytest.approx(np.full(10, 0.7))


@pytest.mark.parametrize("size", [(64, 64), (64, 85), (100, 171), (239, 320)])
def test_the_scaler_is_the_exact_area_mean(size):
    """Arrays differ from the exact means by rounding alone: half a level, and no shift of the brightness."""
    frames = np.random.default_rng(1).integers(0, 256, (2, 240, 320, 3), dtype=np.uint8)
    rows, columns = area_weights(240, size[0]), area_weights(320, size[1])
    exact = np.einsum("ah,thwc,bw->tabc", rows, frames.astype(float), columns, optimize=True)
    error = resize_frames(frames, size, "squeeze") - exact
    assert abs(error).max() < 0.8 and abs(error).mean() < 0.26 and abs(error.mean()) < 0.02


def test_padding_is_black_and_centred():
    """A white 2:1 frame in a square has equal black bars above and below."""
    padded = resize_frames(np.full((1, 20, 40, 3), 255, np.uint8), (16, 16), "pad")
    assert (padded[0, 4:12] == 255).all()
    assert (padded[0, :4] == 0).all()
    assert (padded[0, 12:] == 0).all()


def test_constant_pictures_stay_constant():
    """No filter changes the level of an even area, up or down."""
    frames = np.full((1, 21, 33, 3), (200, 100, 50), np.uint8)
    for size in ((8, 8), (64, 64), (10, 50)):
        for interpolation in ("area", "bilinear"):
            assert (resize_frames(frames, size, "squeeze", interpolation) == (200, 100, 50)).all()


@pytest.mark.parametrize("rule", ["crop", "squeeze", "pad"])
def test_a_file_and_its_frames_as_an_array_resize_alike(clips, rule):
    """The decoder's scaler and the array path differ by less than half a grey level on average."""
    path = clips / "videovaeplus/8.mp4"
    full, _ = read_video(path, 0, 2)
    small, _ = read_video(path, 0, 2, size=(64, 48), resize=rule)
    error = small.astype(float) - resize_frames(full, (64, 48), rule)
    assert abs(error).mean() < 0.5
    assert abs(error.mean()) < 0.2
