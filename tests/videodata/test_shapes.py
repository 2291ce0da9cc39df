"""The generated data set: deterministic, any size and length, and with the motion that it promises."""

import numpy as np
import pytest

from videodata import open_clips
from videodata.shapes import KINDS, Shapes, bounce, make_scene


def test_a_video_follows_from_seed_and_index():
    """The same pixels from any count, window and process; other seeds and indices give other videos."""
    frames = Shapes(20, seed=3).read(7)
    assert frames.shape == (64, 64, 64, 3)
    assert np.array_equal(Shapes(8, frames=200, seed=3).read(7, 10, 5, 2), frames[10:20:2])
    assert not np.array_equal(Shapes(20, seed=4).read(7), frames)
    assert not np.array_equal(Shapes(20, seed=3).read(11), frames)
    assert np.array_equal(open_clips("shapes:20,seed=3", 4, 64, windows="first").source.read(7), frames)


@pytest.mark.parametrize("size", [8, 64, (48, 80), (100, 33)])
def test_any_size_shows_the_same_scene(size):
    """The picture fills the frame at every size, in colour, and something moves in every frame."""
    frames = Shapes(4, size=size).read(1, 0, 8).astype(float)
    assert frames.shape[1:3] == ((size, size) if isinstance(size, int) else size)
    assert abs(np.diff(frames, axis=0)).max((1, 2, 3)).min() > 20
    assert abs(frames[..., 0] - frames[..., 2]).max() > 60


def test_edges_are_antialiased():
    """A drawing at 32 pixels is close to the mean of one at 128: no jagged edges."""
    small = Shapes(1, size=32).read(0, 0, 4).astype(float)
    large = Shapes(1, size=128).read(0, 0, 4).astype(float)
    assert abs(small - large.reshape(4, 32, 4, 32, 4, 3).mean((2, 4))).mean() < 1.5


@pytest.mark.parametrize("aspect", [1.0, 2.0, 0.5])
def test_shapes_stay_in_the_room_and_bounce(aspect):
    """Over 1000 frames no shape leaves; each turns round at both walls of both axes or never reaches them."""
    room = np.array([max(1.0, 1 / aspect), max(1.0, aspect)])
    for shape in make_scene(0, 5, aspect).shapes:
        path = np.array([bounce(shape.position + shape.velocity * t, shape.radius, room) for t in range(1000)])
        assert (path >= shape.radius - 1e-9).all()
        assert (path <= room - shape.radius + 1e-9).all()
        assert np.allclose(
            abs(np.diff(path[:2], axis=0)).sum(), abs(shape.velocity).sum(), atol=2 * abs(shape.velocity).sum()
        )
        assert (np.ptp(path, axis=0) > 0.9 * (room - 2 * shape.radius)).any()


def test_shapes_pass_in_front_of_each_other():
    """Somewhere in 64 frames two shapes of most videos overlap."""
    overlaps = 0
    for index in range(12):
        first, second = make_scene(0, index).shapes[:2]
        paths = [
            np.array([bounce(s.position + s.velocity * t, s.radius, np.ones(2)) for t in range(64)])
            for s in (first, second)
        ]
        distance = np.linalg.norm(paths[0] - paths[1], axis=1)
        overlaps += distance.min() < 0.8 * (first.radius + second.radius)
    assert overlaps >= 6


def test_the_source_says_what_moves_where():
    """The pixel at the nearest shape's centre has its colour, in frames of every form."""
    for size in (64, (48, 80)):
        source = Shapes(20, size=size)
        for video in range(8):
            found, frames = source.objects(video, [0, 7]), source.read(video, 0, 8)[[0, 7]]
            assert len(found.kinds) == len(found.colors) == len(found.centres)
            for frame, centre in zip(frames, found.centres[-1] * min(source.size(video)), strict=True):
                y, x = centre.astype(int)
                assert abs(frame[y, x] / 255 - found.colors[-1]).max() < 0.1
            if source.label(video) != "Mixed":
                assert {f"{KINDS[kind].capitalize()}s" for kind in found.kinds} == {source.label(video)}
