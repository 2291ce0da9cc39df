"""Pictures of a page without a browser: frames keep their colours and places, given ones are marked."""

import numpy as np
from PIL import Image

from evaluation.gallery import Grid, Panel, Row, Section, picture
from evaluation.gallery.picture import (
    GAP,
    HEAD,
    LABEL,
    MARGIN,
    MARK,
    NEW,
    SIDE,
    frames_shown,
    write_film,
    write_picture,
)
from videodata.encode import write_video

RED, BLUE = (200, 30, 30), (30, 30, 200)


def pair(path, frames=4):
    """A video whose left half is red, and its right half blue."""
    pixels = np.zeros((frames, 32, 64, 3), np.uint8)
    pixels[:, :, :32], pixels[:, :, 32:] = RED, BLUE
    return write_video(path, pixels, 8)


def near(pixel, color):
    return np.abs(np.asarray(pixel).astype(int) - color).max() < 8


def test_still_shows_two_clips_of_each_model(tmp_path):
    """One row for each kind, a line after the given frames in both clips; no grid, no frames."""
    path = pair(tmp_path / "pair.mp4")
    clips = {name: [Panel(path, side)] * 3 for side, name in enumerate(("true", "predicted"))}
    sections = [
        Section("one", "", [Grid("clips", clips, given=2)]),
        Section("two", "", [Grid("clips", clips)]),
        Section("none", "", [Row("r", [("a", path)])]),
    ]
    with Image.open(write_picture(tmp_path / "picture.png", sections)) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    left, middle = MARGIN + LABEL + SIDE // 2, MARGIN + 2 * HEAD + SIDE // 2
    assert near(pixels[middle, left], RED) and near(pixels[middle + SIDE + GAP, left], BLUE)
    second = 4 * (SIDE + GAP) - GAP + picture.CLIP_GAP
    for start in (0, second):
        across = MARGIN + LABEL + start + 2 * (SIDE + GAP) - GAP // 2
        assert near(pixels[middle, across], MARK) and not near(
            pixels[middle + 2 * SIDE + picture.MODEL_GAP + HEAD, across], MARK
        )
    assert pixels.shape[0] > 4 * SIDE and pixels.shape[1] > 2 * 4 * SIDE


def test_long_clips_show_every_second_frame_with_the_last(tmp_path):
    """So that a clip of 16 frames has room, and 4 given ones show as 2."""
    assert frames_shown(16) == [1, 3, 5, 7, 9, 11, 13, 15] and frames_shown(8) == list(range(8))
    assert frames_shown(0) == [] and frames_shown(17)[-1] == 16 and len(frames_shown(17)) <= picture.MOST_FRAMES


def test_film_moves_with_given_and_predicted_frames_in_their_colours(tmp_path, monkeypatch):
    """A column for each kind; shorter clips wait on their last frame; a large film is compressed with loss."""
    columns = {"true": [Panel(pair(tmp_path / "a.mp4"), 0)] * 2, "made": [Panel(pair(tmp_path / "b.mp4", 2), 1)] * 5}
    film = write_film(tmp_path / "film.webp", columns, 2)
    tile = SIDE + 2 * picture.EDGE
    with Image.open(film) as image:
        assert image.n_frames == 4 and image.info["loop"] == 0
        for number, color in ((0, MARK), (3, NEW)):
            image.seek(number)
            pixels = np.asarray(image.convert("RGB"))
            edge = GAP + tile + 2 * GAP + 1
            assert near(pixels[picture.CAPTION + tile // 2, edge], color)
            assert near(pixels[picture.CAPTION + tile // 2, edge + tile // 2], BLUE) and near(
                pixels[picture.CAPTION + tile // 2, tile // 2], RED
            )
        assert image.height > HEAD + picture.FILM_CLIPS * tile
    size = film.stat().st_size
    rng = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    columns["noise"] = [write_video(tmp_path / "noise.mp4", rng, 8)]
    full = write_film(tmp_path / "full.webp", columns, 2).stat().st_size
    monkeypatch.setattr(picture, "LARGEST", size)
    assert write_film(tmp_path / "small.webp", columns, 2).stat().st_size < full
