"""open_clips(fps=...): the frames that are nearest in time, whatever rate the video has."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from videodata import UserError, open_clips, write_video
from videodata.clips import ClipDataset
from videodata.source import ClipSource

STEP = 6  # grey levels between frames, more than a coded video loses


class Numbered(ClipSource):
    """One video of some rate, in which the grey level of frame t is t."""

    path = "numbered"

    def __init__(self, rate: Fraction | None, length: int = 250) -> None:
        self.rate, self.frames = rate, length

    def __len__(self) -> int:
        return 1

    def id(self, index: int) -> str:
        return "0"

    def length(self, index: int) -> int:
        return self.frames

    def size(self, index: int) -> tuple[int, int]:
        return (2, 2)

    def fps(self, index: int) -> Fraction | None:
        return self.rate

    def read(self, index, start=0, count=None, step=1):
        times = np.arange(start, self.frames if count is None else start + (count - 1) * step + 1, step)
        assert times[-1] < self.frames
        return np.broadcast_to(times.astype(np.uint8)[:, None, None, None], (len(times), 2, 2, 3))


def frames_of(clips: ClipDataset, item: int = 0) -> list[int]:
    return clips[item][0, :, 0, 0].tolist()


def numbered(rate: Fraction | None, frames: int, fps: float, windows: str = "first", length: int = 250) -> ClipDataset:
    options = {"windows": windows, "flip": False, "dtype": "uint8", "on_error": "raise", "reading": {}}
    return ClipDataset(Numbered(rate, length), [0], frames, None, 1, 0, fps=fps, **options)


@pytest.mark.parametrize(
    ("rate", "fps", "stride"),
    [(Fraction(30), 3, 10), (Fraction(24), 8, 3), (Fraction(10), 10, 1), (Fraction(30000, 1001), 3, 10)],
)
def test_strides_are_exact(rate, fps, stride):
    """All of them, the last one too; 29.97 frames per second are 30 for as long as a frame is nearer than its next."""
    assert frames_of(numbered(rate, 17, fps)) == list(range(0, 17 * stride, stride))


def test_a_slow_video_keeps_its_duration():
    """24 frames per second, asked for 30: every fourth is shown twice, and none is lost. Half a frame rounds up."""
    clip = frames_of(numbered(Fraction(24), 31, 30))
    assert clip[0] == 0
    assert clip[-1] == 24  # after a second
    assert sorted(set(clip)) == list(range(25))
    assert frames_of(numbered(Fraction(2), 9, 30)) == [0] * 8 + [1]


def test_frames_are_the_nearest_in_time():
    """For rates that have no common stride; the error never exceeds half a frame."""
    rate, fps = Fraction(30000, 1001), Fraction(7)
    for number, frame in enumerate(frames_of(numbered(rate, 50, 7))):
        assert abs(Fraction(number) / fps - frame / rate) <= Fraction(1, 2) / rate


def test_windows_fit_into_the_video():
    """Random ones end before it does, consecutive ones follow each other without overlap."""
    clips = numbered(Fraction(30), 5, 7, "random", length=25)
    starts = {frames_of(clips, (0, position))[0] for position in range(60)}
    assert starts == set(range(25 - 17))  # the fifth frame is 17.14 after the first
    clips = numbered(Fraction(30), 5, 7, "consecutive", length=100)
    assert [frames_of(clips, item)[0] for item in range(len(clips))] == [0, 21, 43, 64]
    assert clips.describe(0)["fps"] == 7


def test_a_real_file_is_read_at_the_rate(tmp_path):
    """24 frames per second as they are, every second of them, and as 30."""
    grey = np.arange(40, dtype=np.uint8)[:, None, None, None] * STEP
    write_video(tmp_path / "a.mp4", np.broadcast_to(grey, (40, 32, 32, 3)), Fraction(24))

    def shown(**options: float) -> list[int]:
        clip = open_clips(tmp_path / "a.mp4", 9, None, dtype="uint8", windows="first", **options)[0]
        return (clip.float().mean(dim=(0, 2, 3)) / STEP).round().int().tolist()

    assert shown(fps=24) == list(range(9))
    assert shown(fps=12) == list(range(0, 18, 2))
    assert shown(fps=30) == [0, 1, 2, 2, 3, 4, 5, 6, 6]


def test_what_has_no_rate_is_one_line(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 9, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="use a stride"):
        open_clips(tmp_path / "a.npy", 4, None, fps=3)
    with pytest.raises(UserError, match="takes the place of stride"):
        open_clips("shapes:4", 4, 16, stride=2, fps=3)
    with pytest.raises(UserError, match="at 3 per second"):
        numbered(Fraction(30), 17, 3, length=160)
    assert torch.equal(open_clips("shapes:4", 4, 16, fps=12)[0], open_clips("shapes:4", 4, 16)[0])


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(fps):
    with pytest.raises(UserError, match="fps must be a finite number above 0"):
        open_clips("shapes:2,frames=8,size=16", frames=2, size=16, fps=fps)
