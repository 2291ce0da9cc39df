"""Scores of video files against their originals."""

import numpy as np
import pytest

from evaluation.metrics import ratio_of_jumps
from evaluation.videos import VideoPairScores, pairs_by_name
from videodata import write_video
from videodata.errors import UserError, VideoError


def clip(frames: int, seed: int = 0) -> np.ndarray:
    """A smooth random clip, uint8 (T, 32, 48, 3)."""
    coarse = np.random.default_rng(seed).integers(40, 200, (frames, 4, 6, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def test_a_border_every_window_shows_in_the_ratio():
    """A jump of 2 at every fourth frame among jumps of 1 is a ratio of 2; without borders there is none."""
    jumps = [2.0 if index % 4 == 0 else 1.0 for index in range(1, 12)]
    assert ratio_of_jumps(jumps, 4) == 2.0
    assert ratio_of_jumps(jumps, 0) is None and ratio_of_jumps(jumps, 12) is None


def test_known_errors_are_measured_over_the_whole_length(tmp_path):
    """A video that is 4 levels brighter has that bias and the PSNR that follows; its error never jumps."""
    original = clip(37)
    write_video(tmp_path / "a.mp4", original, 25, lossless=True)
    write_video(tmp_path / "b.mp4", original + 4, 25, lossless=True)
    scores = VideoPairScores(window=8).update(tmp_path / "a.mp4", tmp_path / "b.mp4")
    assert scores["brightness-bias"] == pytest.approx(4.0)
    assert scores["psnr-frame-8bit"] == pytest.approx(20 * np.log10(255 / 4), abs=1e-6)
    assert "boundary-ratio" not in scores  # nothing changes, so there is nothing to compare


def test_pairs_are_matched_by_name_and_must_agree(tmp_path):
    """Files pair by their names without suffix; strangers and other lengths are named."""
    originals, drawn = tmp_path / "originals", tmp_path / "drawn"
    for folder, frames in ((originals, 5), (drawn, 4)):
        folder.mkdir()
        write_video(folder / "x.mp4", clip(frames), 25)
    pairs = pairs_by_name(originals, drawn)
    assert pairs == [(originals / "x.mp4", drawn / "x.mp4")]
    with pytest.raises(VideoError, match="another number of frames"):
        VideoPairScores().update(*pairs[0])
    write_video(drawn / "y.mp4", clip(4), 25)
    with pytest.raises(UserError, match=r"y\.mp4: there is no video of that name"):
        pairs_by_name(originals, drawn)
